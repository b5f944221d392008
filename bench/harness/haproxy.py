"""HAProxy, configured as a sidecar pair."""
import socket

from .certs import TRUST
from .proc import binary
from .topo import Peer, Running


class Haproxy(Peer):
    name = "haproxy"
    bin = binary("HAPROXY_BIN", "haproxy", "/usr/sbin/haproxy")

    def available(self):
        return bool(self.bin)

    def launch(self, c, side, admin, body, mode):
        cfg = f"""global
  nbthread {c.topo.threads}
  maxconn 9000
  stats socket {c.dir}/{side}.sock mode 600
  tune.ssl.cachesize 50000
  tune.bufsize 16384
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode {mode}
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  {'http-reuse ' + ('always' if c.topo.reuse else 'never') if mode == 'http' else ''}
{body}
frontend prom
  mode http
  bind 127.0.0.1:{admin}
  http-request use-service prometheus-exporter
"""
        return c.proxy(side, [self.bin, "-db", "-f", c.write(f"{side}.cfg", cfg)])

    def start(self, c):
        t = c.topo
        mode = "tcp" if t.kind == "l4" else "http"
        ca = c.certs
        fe = " proto h2" if t.client == "h2" and mode == "http" else ""
        og = " proto h2" if t.origin == "h2" and mode == "http" else ""
        if t.kind == "hop":
            a = self.launch(c, "a", c.admin_a, f"frontend f\n  bind {c.host_a}:{c.pa}{fe}\n  default_backend k\n"
                            f"backend k\n  server o {c.origin_ip}:{c.origin_port}{og}\n", mode)
            return Running((c.host_a, c.pa), [("A", a)])
        alpn = "" if mode == "tcp" else (" alpn h2" if t.up == "h2" else " alpn http/1.1")
        ident = "{ ssl_c_s_dn(CN) -m str %sclient }" % TRUST
        deny = f"  tcp-request content reject unless {ident}\n" if mode == "tcp" else f"  http-request deny unless {ident}\n"
        b = self.launch(c, "b", c.admin_b,
                        f"frontend f\n  bind {c.bind_b}:{c.pb} ssl crt {ca}/server.pem ca-file {ca}/ca.pem verify required"
                        f"{alpn}{'' if t.resume else ' no-tls-tickets'}\n{deny}  default_backend k\n"
                        f"backend k\n  server o {c.origin_ip}:{c.origin_port}{og}\n", mode)
        a = self.launch(c, "a", c.admin_a, f"frontend f\n  bind {c.host_a}:{c.pa}{fe}\n  default_backend k\n"
                        f"backend k\n  server b {c.host_b}:{c.pb} ssl crt {ca}/client.pem ca-file {ca}/ca.pem verify required"
                        f" sni str(server.mesh) verifyhost server.mesh{alpn}{' proto h2' if t.up == 'h2' and mode == 'http' else ''}"
                        f"{'' if t.resume else ' no-ssl-reuse'}\n", mode)

        def note():
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(f"{c.dir}/b.sock")
                s.sendall(b"show info\n")
                out = b""
                while True:
                    d = s.recv(65536)
                    if not d:
                        break
                    out += d
                v = dict(l.split(": ", 1) for l in out.decode().splitlines() if ": " in l)
                return f"CumSslConns={v.get('CumSslConns')} SslFrontendSessionReuse_pct={v.get('SslFrontendSessionReuse_pct')} (of the last second)"
            except Exception as e:
                return str(e)
        return Running((c.host_a, c.pa), [("A", a), ("B", b)], note, c.pb)
