"""Scenarios run round by round, and what is printed of them."""
import os, shutil, subprocess, sys, tempfile, time
from statistics import median

from .certs import make_certs
from .hello import Watch
from .load import Load, measured
from .proc import Proc, binary, sh, stop_all
from .topo import IP_A, IP_B, Ctx, Topo

HERE = os.path.dirname(os.path.abspath(__file__))
IDLE = os.path.join(HERE, "idle.py")


class Run:
    def __init__(self, a, peers, scenarios):
        self.a, self.peers, self.scenarios = a, peers, scenarios
        self.tmp = tempfile.mkdtemp(prefix="meshpeers")
        self.certs = f"{self.tmp}/certs"
        os.mkdir(self.certs)
        make_certs(self.certs)
        self.wrk = binary("WRK_BIN", "wrk")
        self.h2load = binary("H2LOAD_BIN", "h2load")
        self.mb = binary("MESHBENCH_BIN", "meshbench")
        if not self.mb:
            td = os.environ.get("CARGO_TARGET_DIR") or os.path.join(tempfile.gettempdir(), "meshbench-target")
            sh("cargo", "build", "--release", cwd=f"{HERE}/../meshbench", env={**os.environ, "CARGO_TARGET_DIR": td})
            self.mb = f"{td}/release/meshbench"
        self.grpc_body = f"{self.tmp}/grpc.bin"
        with open(self.grpc_body, "wb") as f:
            f.write(b"\0" + (100).to_bytes(4, "big") + b"y" * 100)
        self.origin_port = self.zt_port = 20080
        self.ns_a = self.ns_b = self.veth = None
        self.origins, self.results = [], []

    def origin_cpu(self):
        return sum(p.cpu() for p in self.origins)

    def namespaces(self):
        """two namespaces joined by a veth pair: mA 10.77.0.1, mB 10.77.0.2"""
        if self.ns_a:
            return
        a, b = f"mpA{os.getpid()}", f"mpB{os.getpid()}"
        v = f"mp{os.getpid()}"
        for n in (a, b):
            sh("ip", "netns", "add", n)
        self.ns_a, self.ns_b, self.veth = a, b, v + "a"
        sh("ip", "-n", a, "link", "add", v + "a", "type", "veth", "peer", "name", v + "b", "netns", b)
        for n, i, ip in ((a, v + "a", IP_A), (b, v + "b", IP_B)):
            sh("ip", "-n", n, "addr", "add", ip + "/24", "dev", i)
            sh("ip", "-n", n, "link", "set", i, "up")
            sh("ip", "-n", n, "link", "set", "lo", "up")
            for s in ("net.ipv4.ip_local_port_range=24000 65000", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=8192"):
                sh("ip", "netns", "exec", n, "sysctl", "-qw", s)

    def clean(self):
        stop_all()
        for n in (self.ns_a, self.ns_b):
            if n:
                subprocess.run(["ip", "netns", "del", n])
        if not self.a.keep:
            shutil.rmtree(self.tmp, ignore_errors=True)

    # ---------------------------------------------------------------- starting
    def origin(self, topo, sink=False):
        """(re)starts the origin, or the TCP sink on its port: every proxy already points there"""
        for o in self.origins:
            o.stop()
        ns_b = self.ns_b if topo.net == "ns" else None
        addr = f"{'0.0.0.0' if ns_b else '127.0.0.1'}:{self.origin_port}"
        argv = [self.mb, "sink", addr] if sink else [self.mb, "origin", addr, str(topo.body)]
        self.origins = [Proc(argv, ns=ns_b, cpus=self.a.load_cpus, nice=self.a.nice)]
        time.sleep(0.3)

    def visits(self, r, load, topo, n):
        """n new client connections with a request each; True if all were answered"""
        if topo.client == "h2":
            out = load.cmd([self.h2load, "-t1", f"-c{n}", f"-n{n}", "-d", self.grpc_body, "-H", "content-type: application/grpc",
                            "-H", "te: trailers", f"http://{r.entry[0]}:{r.entry[1]}/bench.Echo/Get"], 10)
            return f" {n} 2xx" in out
        pre = ["ip", "netns", "exec", load.ns] if load.ns else []
        o = subprocess.run(pre + [sys.executable, IDLE, r.entry[0], str(r.entry[1]), str(n)], input=b"\n", stdout=subprocess.PIPE).stdout
        return o.startswith(f"ready {n} 0".encode())

    def wait_up(self, r, load, topo):
        end = time.monotonic() + 20
        while time.monotonic() < end and all(p.alive() for _, p in r.procs):
            if self.visits(r, load, topo, 1):
                return True
            time.sleep(0.25)
        return False

    def start(self, pn, topo, slot, load):
        """(running, agreement) or (None, None), said aloud"""
        watch = Watch(self.ns_a, self.veth) if topo.net == "ns" else Watch(None, "lo")
        try:
            r = self.peers[pn].start(Ctx(self, topo, slot))
        except Exception as e:      # one peer that cannot start must not cost the others their figures
            print(f"   {pn}: did not start: {e}", flush=True)
            watch.end(None)
            return None, None
        if not self.wait_up(r, load, topo):
            print(f"   {pn}: did not come up:")
            for l, q in r.procs:
                with open(q.log.name, "rb") as f:
                    print("    ", l, f.read()[-600:].decode(errors="replace") if q.log.name != os.devnull else "")
            watch.end(None)
            r.stop()
            return None, None
        time.sleep(0.5)
        self.visits(r, load, topo, 8)
        return r, watch.end(r.tls_port)

    # ---------------------------------------------------------------- one scenario
    def scenario(self, name):
        title, tk, tests = self.scenarios[name]
        topo = Topo(**tk)
        if topo.net == "ns":
            self.namespaces()
        if self.a.tests:
            tests = [t for t in tests if t[0] in self.a.tests.split(",")]
        keep = self.a.proxy_cpus, self.a.load_cpus
        if name.endswith("_free"):
            allc = f"0-{os.cpu_count() - 1}"
            self.a.proxy_cpus, self.a.load_cpus = allc, allc
        load = Load(self, topo)
        self.origin(topo)
        print(f"\n## {name}: {title}\n\nproxies on CPU {self.a.proxy_cpus}, load and origin on CPU {self.a.load_cpus}, "
              f"{topo.threads} thread(s) per proxy, {self.a.rounds} rounds x {self.a.secs} s, net={topo.net}", flush=True)
        live, agreed = [], []
        for i, pn in enumerate(self.a.peers):
            p = self.peers[pn]
            if not p.available() or not p.supports(topo):
                print(f"   {pn}: {'not in this scenario' if p.available() else 'binary not there'}", flush=True)
                continue
            r, agreement = self.start(pn, topo, i, load)
            if r:
                live.append((pn, r))
                agreed.append((pn, r, agreement))
        for kind, args in tests:
            self.test(name, topo, kind, dict(args), live, load)
        self.agreements(topo, agreed)
        for pn, r in live:
            if r.note:
                print(f"   {pn}: {r.note()}", flush=True)
        for pn, r in live:
            r.stop()
        for o in self.origins:
            o.stop()
        self.origins = []
        self.a.proxy_cpus, self.a.load_cpus = keep

    def agreements(self, topo, agreed):
        rows = [(pn, a) for pn, r, a in agreed if r.procs]
        if topo.kind == "hop" or not rows:
            return
        print("\n### between A and B (ServerHellos of the first 9 client connections, read off the wire)\n"
              "| peer | key exchange | cipher | handshakes | resumed |\n|---|---|---|---|---|")
        for pn, a in rows:
            if a is None:
                print(f"| {pn} | not seen (needs CAP_NET_RAW) | | | |")
                continue
            of = lambda key: ", ".join(sorted({str(h[key]) for h in a})) or "–"
            # a resumed handshake is a ServerHello with a pre-shared key
            print(f"| {pn} | {of('group')} | {of('cipher')} | {len(a)} | {sum(h['resumed'] for h in a)} |", flush=True)
            self.results.append(dict(scenario="agreement", peer=pn, kind=topo.kind, hellos=a))

    def test(self, name, topo, kind, args, live, load):
        a = self.a
        if not live:
            return
        if kind == "idle":
            return self.idle(name, topo, live, load)
        if kind in ("rtt", "bulk"):
            self.origin(topo, sink=True)
        for _, r in live:
            one_load(load, kind, args, r.entry, 1)
        got = {pn: [] for pn, _ in live}
        for n in range(a.rounds):
            order = live[n % len(live):] + live[:n % len(live)]
            for pn, r in order:
                got[pn].append(measured(self, r, lambda: one_load(load, kind, args, r.entry, a.secs)))
        if kind in ("rtt", "bulk"):
            self.origin(topo)
        for pn, _ in live:
            self.results.extend(dict(scenario=name, test=kind, args=args, peer=pn, **x) for x in got[pn])
        print(f"\n### {name} / {title_of(kind, args)}")
        rows = bulk_table(live, got) if kind == "bulk" else request_table(live, got)
        ratios(rows, "CPU s per GB" if kind == "bulk" else "CPU per request", "GB/s" if kind == "bulk" else "req/s")

    def idle(self, name, topo, live, load, n=1000):
        print(f"\n### {name} / memory: fresh, and with {n} idle client connections (each made one request), new processes")
        print("| peer | RSS fresh MiB A / B | of it its own (anonymous) A / B | RSS with connections A / B | KiB per connection (A+B) | opened/bad | idle CPU % |\n"
              "|---|---|---|---|---|---|---|")
        for i, (pn, r0) in enumerate(live):
            if not r0.procs:
                continue
            # the measured one has warm pools: a fresh one beside it
            try:
                r = self.peers[pn].start(Ctx(self, topo, 10 + i))
            except Exception as e:
                print(f"| {pn} | did not start: {e} |")
                continue
            if not self.wait_up(r, load, topo):
                print(f"| {pn} | did not come up |")
                r.stop()
                continue
            time.sleep(1)
            before = r.memory()
            pre = ["ip", "netns", "exec", load.ns] if load.ns else []
            h = subprocess.Popen(pre + [sys.executable, IDLE, r.entry[0], str(r.entry[1]), str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            line = h.stdout.readline().decode().split()
            time.sleep(1)
            c0, t0 = sum(r.cpu().values()), time.monotonic()
            time.sleep(4)
            idle = (sum(r.cpu().values()) - c0) / (time.monotonic() - t0) * 100
            after = r.memory()
            h.communicate(b"\n")
            mib = lambda d, k: " / ".join(f"{v[k] / 1024:.1f}" for v in d.values())
            per = sum(after[l]["VmRSS"] - before[l]["VmRSS"] for l in before) / n
            print(f"| {pn} | {mib(before, 'VmRSS')} | {mib(before, 'RssAnon')} | {mib(after, 'VmRSS')} | {per:.1f} | {line[1]}/{line[2]} | {idle:.2f} |", flush=True)
            self.results.append(dict(scenario=name, test="idle", peer=pn, before=before, after=after, n=n, idle_cpu_pct=idle))
            r.stop()


# -------------------------------------------------------------------- loads and tables
def one_load(load, kind, args, e, secs):
    addr = f"{e[0]}:{e[1]}"
    if kind == "wrk":
        return load.wrk(e, secs, **args)
    if kind == "rate":
        return load.mb("rate", addr, args.get("conns", 64), secs, args["rate"])
    if kind in ("h2load", "h2rate"):
        return load.h2load(e, secs, **args)
    if kind == "conn":
        return load.mb("conn", addr, args["conns"], secs)
    if kind == "connrate":
        return load.mb("connrate", addr, args["conns"], secs, args["rate"])
    if kind == "rtt":
        return load.mb("rtt", addr, args["conns"], secs, args["bytes"])
    return load.mb("bulk", addr, args["dir"], args["conns"], secs)


def title_of(kind, args):
    conns = args.get("conns", 64)
    return {"wrk": f"saturated, {conns} conn (wrk)", "h2load": "saturated, 8 conn x 8 streams (h2load)",
            "rate": f"at {args.get('rate')}/s, {conns} conn (open loop, latency from the due time)",
            "h2rate": f"at {args.get('rate')}/s, 8 conn x 8 streams (h2load)",
            "conn": f"saturated, {conns} clients, connect+GET+close",
            "connrate": f"{args.get('rate')} new connections/s, connect+GET+close (open loop, latency from the due time)", "rtt": f"echo {args.get('bytes')} B, {conns} conn",
            "bulk": f"bulk {args.get('dir')}, {conns} conn"}[kind]


def request_table(live, got):
    """prints; returns [(peer, CPU us per request, req/s, p50, p99)]"""
    print("| peer | req/s median (best) | CPU us/req A+B median [min-max] | A / B us | sys % | A+B util | p50 us | p90 | p99 (best) | p99.9 | err | foreign cores |\n"
          "|---|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for pn, r in live:
        g = got[pn]
        med = lambda f: median(f(x) for x in g)
        us = sorted(sum(x.get("us", {}).values()) for x in g)
        ab = " / ".join(f"{med(lambda x: x.get('us', {}).get(l, 0)):.1f}" for l, _ in r.procs) or "-"
        pc = " | ".join(f"{med(lambda x: x.get(k, 0)):.0f}" + (f" ({min(x.get(k, 0) for x in g):.0f})" if k == "p99" else "")
                        for k in ("p50", "p90", "p99", "p999"))
        print(f"| {pn} | {med(lambda x: x['rps']):.0f} ({max(x['rps'] for x in g):.0f}) | {median(us):.1f} [{us[0]:.1f}-{us[-1]:.1f}] | {ab} "
              f"| {100 * med(lambda x: x['sys']):.0f} | {med(lambda x: x['proxy_util']):.2f} | {pc} "
              f"| {sum(x['errors'] for x in g)} | {med(lambda x: x['foreign']):.2f} |", flush=True)
        rows.append((pn, median(us), med(lambda x: x["rps"]), med(lambda x: x.get("p50", 0)), med(lambda x: x.get("p99", 0))))
    return rows


def bulk_table(live, got):
    print("| peer | GB/s median (best) | proxy CPU s/GB median [min-max] | sys % | A+B util | foreign cores |\n|---|---|---|---|---|---|")
    rows = []
    for pn, r in live:
        g = got[pn]
        med = lambda f: median(f(x) for x in g)
        s = sorted(x.get("s_per_gb", 0) for x in g)
        print(f"| {pn} | {med(lambda x: x['gbps']):.2f} ({max(x['gbps'] for x in g):.2f}) | {median(s):.3f} [{s[0]:.3f}-{s[-1]:.3f}] "
              f"| {100 * med(lambda x: x['sys']):.0f} | {med(lambda x: x['proxy_util']):.2f} | {med(lambda x: x['foreign']):.2f} |", flush=True)
        rows.append((pn, median(s), med(lambda x: x["gbps"]), 0, 0))
    return rows


def ratios(rows, cost, speed):
    """Weft over each peer, from the medians; a CPU figure below 1 and a speed above 1 are in Weft's favour"""
    ours = next((r for r in rows if r[0] == "weft"), None)
    others = [r for r in rows if r[0] not in ("weft", "direct")]
    if not ours or not others:
        return
    over = lambda a, b: f"{a / b:.2f}" if a and b else "–"
    print(f"\n| weft over | {cost} | {speed} | p50 | p99 |\n|---|---|---|---|---|")
    for r in others:
        print(f"| {r[0]} | " + " | ".join(over(ours[i], r[i]) for i in range(1, 5)) + " |", flush=True)
