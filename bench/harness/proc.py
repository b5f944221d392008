"""Processes of ours: started with their CPUs and scheduler group, measured through /proc, ended by pid."""
import os, resource, shutil, signal, subprocess

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def binary(var, *names):
    p = os.environ.get(var)
    if p:
        return p if os.access(p, os.X_OK) else None
    for n in names:
        w = shutil.which(n) or (n if os.path.isabs(n) and os.access(n, os.X_OK) else None)
        if w:
            return w
    return None


STARTED = []


class Proc:
    """A process of ours: started in a namespace (or none) on given CPUs; ended by pid."""

    def __init__(self, argv, ns=None, cpus=None, env=None, log=None, nice=0):
        pre = []
        if ns:
            pre += ["ip", "netns", "exec", ns]
        if cpus is not None:
            pre += ["taskset", "-c", cpus]
        self.argv = pre + argv        # each of these execs the next one: the pid is the program's
        self.log = open(log or os.devnull, "wb")
        self.p = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                  env={**os.environ, **(env or {})}, preexec_fn=own_group(nice))
        self.pid = self.p.pid
        STARTED.append(self)

    def cpu(self):
        """user+sys seconds, all threads"""
        try:
            with open(f"/proc/{self.pid}/stat") as f:
                v = f.read().rsplit(")", 1)[1].split()
            return (int(v[11]) + int(v[12])) / TICK
        except FileNotFoundError:
            return 0.0

    def sys(self):
        """the system part of cpu(): sampled by the tick, so rougher than the sum"""
        try:
            with open(f"/proc/{self.pid}/stat") as f:
                return int(f.read().rsplit(")", 1)[1].split()[12]) / TICK
        except FileNotFoundError:
            return 0.0

    def rss(self):
        try:
            with open(f"/proc/{self.pid}/statm") as f:
                return int(f.read().split()[1]) * PAGE
        except (FileNotFoundError, IndexError):
            return 0

    def memory(self):
        """resident KiB: of everything, of memory of its own, of pages of files (the program and its libraries, shared by every copy of it)"""
        try:
            with open(f"/proc/{self.pid}/status") as f:
                v = dict(l.split(":", 1) for l in f)
            return {k: int(v[k].split()[0]) for k in ("VmRSS", "RssAnon", "RssFile")}
        except (FileNotFoundError, KeyError):
            return {"VmRSS": 0, "RssAnon": 0, "RssFile": 0}

    def alive(self):
        return self.p.poll() is None

    def stop(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            try:
                self.p.wait(2)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()
        if self in STARTED:
            STARTED.remove(self)


def own_group(nice):
    """Own session = own scheduler autogroup (as if own container), so that a build elsewhere in our session does not
    share our slice. Linux ignores plain nice between autogroups; the group's niceness is set instead."""
    def pre():
        os.setsid()
        if nice:
            try:
                with open("/proc/self/autogroup", "w") as f:
                    f.write(str(nice))
            except OSError:
                os.nice(nice)
        files()
    return pre


def files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def stop_all():
    for p in list(STARTED):
        p.stop()


def sh(*a, **k):
    return subprocess.run(a, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **k).stdout.decode()
