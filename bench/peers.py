#!/usr/bin/env python3
"""Side-by-side benchmark of service-mesh data planes on one small machine. Python 3 stdlib only.

  cargo xtask bench peers                      builds Weft, fetches the peers, runs the default scenarios
  python3 peers.py -s pair_h2up -p envoy,haproxy -r 3 -d 5
  python3 peers.py --list

Each scenario starts every peer, then measures them in turn, round after round (the order is rotated), so that
a noisy minute hits every peer alike. CPU per request is user+sys of the proxy processes (/proc/PID/stat) over
the requests of that run. By default proxies A and B share CPU 0; load generator and origin share CPU 1.
`foreign` is CPU time in that run of anything else on the machine, in cores: high = do not trust the wall clock.

Binaries come from the environment, else from PATH:
  WEFT_BIN ENVOY_BIN HAPROXY_BIN NGINX_BIN ZTUNNEL_BIN WRK_BIN H2LOAD_BIN MESHBENCH_BIN
A new peer = one subclass of Peer (see harness/haproxy.py) with start(), and its name in PEERS.
Traffic stays on 127.0.0.0/8, or (net="ns") in two network namespaces made and removed by this script.
Only processes started here are ended, by pid.
"""
import argparse, atexit, json, os, platform, signal, sys

from harness.envoy import Envoy, EnvoyNoTls
from harness.haproxy import Haproxy
from harness.nginx import Nginx
from harness.run import Run
from harness.topo import Direct
from harness.weft import Weft
from harness.ztunnel import Ztunnel

PEERS = {p.name: p for p in (Direct(), Weft(), Envoy(), EnvoyNoTls(), Haproxy(), Nginx(), Ztunnel())}

# name: (title, topo, tests)   tests: (kind, args).  What Weft speaks between its proxies is its own in every scenario.
BOTH = [("wrk", {"conns": 64}), ("rate", {"conns": 64, "rate": 2000}), ("wrk", {"conns": 1}), ("rate", {"conns": 1, "rate": 500})]
CONN = [("conn", {"conns": 16}), ("connrate", {"conns": 64, "rate": 300})]
L4 = [("wrk", {"conns": 64}), ("rate", {"conns": 64, "rate": 2000}), ("rtt", {"conns": 1, "bytes": 64}),
      ("bulk", {"dir": "up", "conns": 1}), ("bulk", {"dir": "down", "conns": 4}), ("idle", {})]
SCENARIOS = {
    "pair_h2up": ("HTTP/1.1 sidecar pair, 100 B, mTLS + identity check, HTTP/2 between A and B", dict(kind="pair", up="h2"),
                  BOTH + [("idle", {})]),
    "pair_h2up_16k": ("the same with 16 KiB bodies", dict(kind="pair", up="h2", body=16384), BOTH),
    "pair_h1": ("HTTP/1.1 sidecar pair, 100 B, HTTP/1.1 between A and B", dict(kind="pair", up="h1"), BOTH + [("idle", {})]),
    "pair_h1_16k": ("the same with 16 KiB bodies", dict(kind="pair", up="h1", body=16384), BOTH),
    "grpc": ("gRPC unary over HTTP/2 end to end, sidecar pair (8 conns x 8 streams, 100 B)",
             dict(kind="pair", client="h2", up="h2", origin="h2"), [("h2load", {}), ("h2rate", {"rate": 2000})]),
    "l4": ("TCP pair over mTLS: HTTP/1.1 keep-alive as payload, echo, bulk", dict(kind="l4"), L4),
    "conn_l7": ("new client connection per request (HTTP pair), A to B as each ships it", dict(kind="pair", up="h2"), CONN),
    "conn_l4": ("new TCP connection through the L4 pair, resumption on where there is any", dict(kind="l4"), CONN),
    # Only when asked for by name: floors, ablations, and what needs root.
    "hop": ("HTTP/1.1 keep-alive, 100 B body, one plaintext hop", dict(kind="hop"), BOTH + [("idle", {})]),
    "pair_h1_free": ("as pair_h1, 2 threads per proxy, no pinning", dict(kind="pair", up="h1", threads=2), BOTH[:2]),
    "pair_h2up_free": ("as pair_h2up, 2 threads per proxy, no pinning", dict(kind="pair", up="h2", threads=2), BOTH[:2]),
    "l4_ns": ("as l4, in two network namespaces (ztunnel needs them)", dict(kind="l4", net="ns"), L4),
    "conn_l7_new": ("new connection + new mTLS connection per request (HTTP pair), resumption on", dict(kind="pair", reuse=False),
                    CONN),
    "conn_l7_full": ("new connection + new mTLS connection per request (HTTP pair), full handshakes",
                     dict(kind="pair", reuse=False, resume=False), CONN),
    "conn_l4_ns": ("as conn_l4, in two network namespaces", dict(kind="l4", net="ns"), CONN),
    "conn_l4_full": ("new TCP connection through the L4 pair, full handshakes", dict(kind="l4", resume=False), CONN),
}
DEFAULT = "pair_h2up,pair_h2up_16k,pair_h1,grpc,l4,conn_l7,conn_l4"


def machine():
    with open("/proc/cpuinfo") as f:
        model = next((l.split(":", 1)[1].strip() for l in f if l.startswith("model name")), "unknown CPU")
    with open("/proc/meminfo") as f:
        gib = int(f.readline().split()[1]) / 2**20
    return f"{os.cpu_count()} x {model}, {gib:.0f} GiB, Linux {platform.release()}"


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-s", "--scenarios", default=DEFAULT, help="names, comma-separated, or `all`")
    ap.add_argument("-p", "--peers", default=",".join(k for k, p in PEERS.items() if p.default))
    ap.add_argument("-t", "--tests", default="", help="only these kinds: wrk,rate,h2load,h2rate,conn,connrate,rtt,bulk,idle")
    ap.add_argument("-r", "--rounds", type=int, default=3)
    ap.add_argument("-d", "--secs", type=int, default=4)
    ap.add_argument("--proxy-cpus", default="0")
    ap.add_argument("--load-cpus", default="1")
    ap.add_argument("--nice", type=int, default=0, help="niceness of proxies, origin and load (negative: less noise from others)")
    ap.add_argument("--json", help="write every single run here")
    ap.add_argument("--keep", action="store_true", help="keep the temp dir (configs, logs)")
    ap.add_argument("--list", action="store_true")
    ap.add_argument("-v", "--verbose", action="store_true")
    a = ap.parse_args()
    for what, names, known in (("scenario", a.scenarios, [*SCENARIOS, "all"]), ("peer", a.peers, PEERS)):
        for name in names.split(","):
            if name not in known:
                ap.error(f"no {what} {name}: {', '.join(known)}")
    return a


def main():
    a = arguments()
    if a.list:
        for k, v in SCENARIOS.items():
            print(f"{k:16} {v[0]}  tests: {[t[0] for t in v[2]]}{'' if k in DEFAULT.split(',') else '  (by name only)'}")
        for k, p in PEERS.items():
            print(f"peer {k:12} {'' if p.available() else 'NOT '}available {getattr(p, 'bin', '')}")
        return
    a.peers = a.peers.split(",")
    run = Run(a, PEERS, SCENARIOS)
    atexit.register(run.clean)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"# Peers side by side\n\n{machine()}")
    if a.keep:
        print("temp dir", run.tmp)
    try:
        for s in SCENARIOS if a.scenarios == "all" else a.scenarios.split(","):
            run.scenario(s)
    finally:
        if a.json:
            with open(a.json, "w") as f:
                json.dump(run.results, f, indent=0)


if __name__ == "__main__":
    main()
