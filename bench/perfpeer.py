#!/usr/bin/env python3
"""Where a peer's CPU goes: python3 bench/perfpeer.py SCENARIO PEER [SECS] [NICE] -- perf (cpu-clock) on its proxies under load.
TEST=bulk takes another test of the scenario than its first. With STRACE=1 it counts system calls instead (strace -c slows
the peer: only the counts mean something)."""
import argparse, os, subprocess, sys, threading, time
from harness.load import Load, measured
from harness.run import Run, one_load
from harness.topo import Topo
from peers import PEERS, SCENARIOS

def main():
    sc, pn = sys.argv[1], sys.argv[2]
    secs = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    a = argparse.Namespace(proxy_cpus="0", load_cpus="1", nice=int(sys.argv[4]) if len(sys.argv) > 4 else 0, verbose=False,
                           keep=False, rounds=1, secs=secs, tests="", peers=[pn])
    run = Run(a, PEERS, SCENARIOS)
    try:
        _, tk, tests = SCENARIOS[sc]
        topo = Topo(**tk)
        if topo.net == "ns":
            run.namespaces()
        kind, args = next((t for t in tests if t[0] == os.environ.get("TEST")), tests[0])
        load = Load(run, topo)
        run.origin(topo)
        r, _ = run.start(pn, topo, 0, load)
        assert r, "did not come up"
        if kind in ("rtt", "bulk"):
            run.origin(topo, sink=True)
        go = lambda s: one_load(load, kind, args, r.entry, s)
        go(1)
        pids = ",".join(str(p.pid) for _, p in r.procs)
        data, out = f"{run.tmp}/perf.data", {}
        t = threading.Thread(target=lambda: out.update(measured(run, r, lambda: go(secs + 2))))
        t.start()
        time.sleep(1)
        if os.environ.get("STRACE"):
            s = subprocess.Popen(["strace", "-c", "-f"] + [x for p in pids.split(",") for x in ("-p", p)], stderr=subprocess.PIPE)
            t.join()
            s.send_signal(2)
            print(s.communicate()[1].decode()[-3500:])
        else:
            subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-o", data, "-p", pids, "--", "sleep", str(secs)],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            t.join()
            for sort, n in (("dso", 8), ("dso,symbol", 45)):
                x = subprocess.run(["perf", "report", "-i", data, "--stdio", "-q", "--sort", sort, "--percent-limit", "0.4"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
                print("\n".join(x.strip().splitlines()[:n]), "\n")
        print(sc, pn, kind, {k: out.get(k) for k in ("n", "rps", "us", "s_per_gb", "gbps", "sys", "proxy_util", "foreign", "errors")})
        r.stop()
    finally:
        run.clean()


if __name__ == "__main__":
    main()
