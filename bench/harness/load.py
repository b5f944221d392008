"""The load generators, and what one measured run is."""
import json, os, re, resource, subprocess, sys, time

from .proc import TICK, own_group


class Load:
    def __init__(self, run, topo):
        self.run, self.a = run, run.a
        self.ns = run.ns_a if topo.net == "ns" else None

    def cmd(self, argv, timeout=120):
        pre = ["ip", "netns", "exec", self.ns] if self.ns else []
        full = pre + ["taskset", "-c", self.a.load_cpus] + argv
        if self.a.verbose:
            print("   $", " ".join(full), file=sys.stderr)
        p = subprocess.run(full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, preexec_fn=own_group(self.a.nice))
        return p.stdout.decode(errors="replace")

    def wrk(self, e, secs, conns=64):
        o = self.cmd([self.run.wrk, "-t1", f"-c{conns}", f"-d{secs}s", "--latency", f"http://{e[0]}:{e[1]}/"])
        m = re.search(r"(\d+) requests in ([\d.]+)(\w+)", o)
        if not m:
            return {"n": 0, "rps": 0, "errors": -1, "raw": o[-300:]}
        n, err = int(m[1]), 0
        x = re.search(r"Non-2xx or 3xx responses: (\d+)", o)
        err += int(x[1]) if x else 0
        x = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", o)
        err += sum(int(g) for g in x.groups()) if x else 0
        r = {"n": n, "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", o)[1]), "errors": err}
        for k, q in (("p50", "50"), ("p90", "90"), ("p99", "99")):
            x = re.search(rf"\s{q}%\s+([\d.]+)(us|ms|s)", o)
            if x:
                r[k] = float(x[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[x[2]]
        return r

    def h2load(self, e, secs, rate=None, conns=8, streams=8):
        """h2load, saturated or at a fixed rate; latency from its log, counted from when the request was sent"""
        log = f"{self.run.tmp}/h2.log"
        if os.path.exists(log):
            os.unlink(log)
        o = self.cmd([self.run.h2load, "-t1", f"-c{conns}", f"-m{streams}", "-D", str(secs), "--log-file", log,
                      *(["--rps", str(rate / conns)] if rate else []), "-d", self.run.grpc_body,
                      "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{e[0]}:{e[1]}/bench.Echo/Get"])
        v, bad = [], 0
        try:
            with open(log) as f:
                for l in f:
                    x = l.split("\t")
                    if x[1] == "200":
                        v.append(int(x[2]))
                    else:
                        bad += 1
        except (OSError, IndexError, ValueError) as ex:
            return {"n": 0, "rps": 0, "errors": -1, "raw": f"{ex} {o[-300:]}"}
        v.sort()
        p = lambda q: v[min(len(v) - 1, int(len(v) * q))] if v else 0
        return {"n": len(v), "rps": len(v) / secs, "errors": bad, "p50": p(.5), "p90": p(.9), "p99": p(.99), "p999": p(.999)}

    def mb(self, *args):
        o = self.cmd([self.run.mb, *map(str, args)])
        try:
            return json.loads(o)
        except ValueError:
            return {"n": 0, "rps": 0, "errors": -1, "bytes": 0, "gbps": 0, "raw": o[-300:]}


def busy():
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    return (v[0] + v[1] + v[2] + v[5] + v[6]) / TICK, v[7] / TICK     # busy, steal


def beside(r):
    """what is ours but nobody's figure: a peer's control plane, and this process with its scraper"""
    me = resource.getrusage(resource.RUSAGE_SELF)
    return r.beside_cpu() + me.ru_utime + me.ru_stime


def measured(run, r, fn):
    """runs one load; adds proxy CPU, origin and load CPU, foreign CPU, steal"""
    c0, o0, b0, s0, e0 = r.cpu(), run.origin_cpu(), busy(), r.sys(), beside(r)
    u0 = resource.getrusage(resource.RUSAGE_CHILDREN)
    t0 = time.monotonic()
    x = fn()
    w = time.monotonic() - t0
    u1 = resource.getrusage(resource.RUSAGE_CHILDREN)
    c1, o1, b1, e1 = r.cpu(), run.origin_cpu(), busy(), beside(r)
    x["cpu"] = {k: c1[k] - c0[k] for k in c1}
    x["wall"] = w
    x["sys"] = (r.sys() - s0) / max(1e-9, sum(x["cpu"].values()))
    load = u1.ru_utime + u1.ru_stime - u0.ru_utime - u0.ru_stime
    ours = sum(x["cpu"].values()) + (o1 - o0) + load + (e1 - e0)
    x["origin_cpu"], x["load_cpu"] = o1 - o0, load
    x["foreign"] = max(0.0, (b1[0] - b0[0] - ours) / w)
    x["steal"] = (b1[1] - b0[1]) / w
    x["proxy_util"] = sum(x["cpu"].values()) / w
    if x.get("n"):
        x["us"] = {k: v / x["n"] * 1e6 for k, v in x["cpu"].items()}
    if x.get("bytes"):
        x["s_per_gb"] = sum(x["cpu"].values()) / (x["bytes"] / 1e9)
    if x.get("errors"):
        print(f"   ! errors {x['errors']} {x.get('raw', '')}", file=sys.stderr)
    return x
