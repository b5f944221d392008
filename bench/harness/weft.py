"""Weft as shipped: two sidecars fed by `weft server`, one ALLOW rule, request ids and Istio metrics on and scraped once a
second, access log off like the peers'. Nothing is tuned for the bench.

The command lines stand in this file alone; when they change, only `sidecar`, `server` and `token` do."""
import os, threading, time, urllib.error, urllib.request

from .proc import Proc, binary, sh
from .topo import Peer, Running

POLICY = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: default}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: ["*/ns/default/sa/client"]}
"""
PROTOCOL = {"h1": "http", "h2": "grpc"}


class Scraper:
    """What a Prometheus does, every second: its cost to the proxies is part of their figure."""

    def __init__(self, urls):
        self.urls, self.ok, self.bad, self.ended = urls, 0, 0, threading.Event()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self):
        while not self.ended.wait(1):
            for url in self.urls:
                try:
                    with urllib.request.urlopen(url, timeout=2) as answer:
                        self.ok += b"istio_" in answer.read()
                except OSError:
                    self.bad += 1

    def stop(self):
        self.ended.set()
        self.thread.join(3)


class Weft(Peer):
    name = "weft"
    bin = binary("WEFT_BIN", "weft")
    # the data plane alone, where it is at hand: what a container would run
    proxy = binary("WEFT_PROXY_BIN", "weft-proxy")

    def available(self):
        return bool(self.bin)

    def supports(self, t):
        # One worker per sidecar, one transport between them with its own pool: nothing to turn off. A plain hop without identity is nothing that Weft ships.
        return t.kind in ("pair", "l4") and t.threads == 1 and t.net == "lo" and t.resume and t.reuse

    def server(self, c):
        http, mesh = f"127.0.0.1:{c.pa + 4}", f"127.0.0.1:{c.pa + 5}"
        p = Proc([self.bin, "server", "--data", f"{c.dir}/data", "--http", http, "--mesh", mesh], cpus=c.run.a.load_cpus,
                 log=f"{c.dir}/server.log", nice=c.run.a.nice)
        token = f"{c.dir}/data/admin.token"
        until(lambda: os.path.exists(token) and answers(f"http://{http}/"), p)
        return p, mesh, {"WEFT_SERVER": f"http://{http}", "WEFT_TOKEN_FILE": token}

    def ctl(self, env, *args):
        return sh(self.bin, *args, env={**os.environ, **env})

    def token(self, env, service):
        return self.ctl(env, "token", "create", "--service", service).splitlines()[0].strip()

    def sidecar(self, c, side, service, mesh, token, *more):
        metrics, mesh_listen = (c.admin_a, c.pa + 6) if side == "a" else (c.admin_b, c.pb)
        argv = [*([self.proxy] if self.proxy else [self.bin, "sidecar"]), "--service", service, "--join", mesh, "--mesh-listen", f"127.0.0.1:{mesh_listen}",
                "--metrics", f"127.0.0.1:{metrics}", "--id", service, *more]
        return c.proxy(side, argv, {"WEFT_TOKEN": token})

    def start(self, c):
        t = c.topo
        origin = PROTOCOL[t.origin] if t.kind == "pair" else "tcp"
        client = PROTOCOL[t.client] if t.kind == "pair" else "tcp"
        control, mesh, env = self.server(c)
        self.ctl(env, "apply", "-f", c.write("policy.yaml", POLICY))
        b = self.sidecar(c, "b", "server", mesh, self.token(env, "server"), "--port", f"main={c.origin_port}/{origin}")
        a = self.sidecar(c, "a", "client", mesh, self.token(env, "client"), "--upstream", f"server:main={c.pa}/{client}")
        scraper = Scraper([f"http://127.0.0.1:{p}/metrics" for p in (c.admin_a, c.admin_b)])
        start = control.cpu()

        def note():
            return (f"scraped {scraper.ok} times with Istio metrics, {scraper.bad} failed; "
                    f"server (not counted): {control.cpu() - start:.2f} CPU s, {control.rss() / 2**20:.1f} MiB")
        run = Running((c.host_a, c.pa), [("A", a), ("B", b)], note, c.pb, [control])
        run.at_end = scraper.stop
        return run


def until(question, process, seconds=20):
    end = time.monotonic() + seconds
    while not question():
        if not process.alive() or time.monotonic() > end:
            with open(process.log.name, "rb") as f:
                raise RuntimeError("did not come up: " + f.read()[-600:].decode(errors="replace"))
        time.sleep(0.1)


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
