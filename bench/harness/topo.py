"""What a scenario asks for, where things are, and what a peer is."""
import tempfile

from .proc import Proc

IP_A, IP_B = "10.77.0.1", "10.77.0.2"     # only inside the namespaces made here


class Topo:
    """What a scenario asks of a peer.
    kind: hop (one plaintext HTTP hop) | pair (client -> A -> mTLS -> B -> origin, HTTP) | l4 (the same, raw TCP)
    client/up/origin: h1 or h2 for client->A, A->B, B->origin;  reuse: A may keep connections to B
    resume: TLS session resumption A->B;  threads: worker threads per proxy;  body: bytes of the origin's answer
    net: lo, or ns (two network namespaces: for ztunnel, which takes what iptables redirects)"""

    def __init__(self, kind, client="h1", up="h1", origin="h1", reuse=True, resume=True, threads=1, net="lo", body=100):
        self.kind, self.client, self.up, self.origin = kind, client, up, origin
        self.reuse, self.resume, self.threads, self.net = reuse, resume, threads, net
        self.body = body


class Ctx:
    """Where things are, for one peer in one scenario."""

    def __init__(self, run, topo, slot):
        self.run, self.topo, self.certs = run, topo, run.certs
        self.dir = tempfile.mkdtemp(prefix="peer", dir=run.tmp)
        b = 21000 + slot * 20
        self.pa, self.pb, self.admin_a, self.admin_b = b, b + 1, b + 2, b + 3
        ns = topo.net == "ns"
        self.ns_a, self.ns_b = (run.ns_a, run.ns_b) if ns else (None, None)
        self.host_a = "127.0.0.1"                       # A listens here
        self.bind_b = "0.0.0.0" if ns else "127.0.0.1"  # B listens here
        self.host_b = IP_B if ns else "127.0.0.1"       # A reaches B here
        self.origin_ip, self.origin_port = "127.0.0.1", run.origin_port   # as B sees it
        self.cpus = run.a.proxy_cpus

    def proxy(self, side, argv, env=None):
        return Proc(argv, ns=self.ns_a if side == "a" else self.ns_b, cpus=self.cpus, env=env,
                    log=f"{self.dir}/{side}.log", nice=self.run.a.nice)

    def write(self, name, text):
        p = f"{self.dir}/{name}"
        with open(p, "w") as f:
            f.write(text)
        return p


class Running:
    """A started peer. procs: [(label, Proc)], what its CPU and memory are; note(): a line for the report, or None;
    tls_port: where B takes mTLS, None = any; beside: processes of it that do not count (a control plane)."""

    def __init__(self, entry, procs, note=None, tls_port=None, beside=()):
        self.entry, self.procs, self.note, self.tls_port, self.beside = entry, procs, note, tls_port, list(beside)
        self.at_end = None

    def cpu(self):
        return {l: p.cpu() for l, p in self.procs}

    def sys(self):
        return sum(p.sys() for _, p in self.procs)

    def memory(self):
        return {l: p.memory() for l, p in self.procs}

    def beside_cpu(self):
        return sum(p.cpu() for p in self.beside)

    def stop(self):
        if self.at_end:
            self.at_end()
        for p in [p for _, p in self.procs] + self.beside:
            p.stop()


class Peer:
    name, default = "", True

    def available(self):
        return True

    def supports(self, t):
        return True

    def start(self, c):
        raise NotImplementedError


class Direct(Peer):
    name = "direct"

    def supports(self, t):
        return t.reuse and t.client == t.origin or t.kind in ("hop", "l4") or not t.reuse

    def start(self, c):
        return Running((c.host_b, c.origin_port), [])
