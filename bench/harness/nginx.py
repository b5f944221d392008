"""nginx: a floor, not a mesh; HTTP/1.1 only."""
from .certs import TRUST
from .proc import binary
from .topo import Peer, Running


class Nginx(Peer):
    name = "nginx"
    bin = binary("NGINX_BIN", "nginx", "/usr/sbin/nginx")

    def available(self):
        return bool(self.bin)

    def supports(self, t):
        return t.kind in ("hop", "pair") and t.client == t.up == t.origin == "h1" and t.threads == 1

    def launch(self, c, side, body):
        tmp = "\n".join(f"  {k}_temp_path {c.dir}/{side}_{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        cfg = f"""daemon off; master_process off; worker_processes 1; pid {c.dir}/{side}.pid; error_log {c.dir}/{side}.err crit;
worker_rlimit_nofile 60000;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 300s;
{tmp}
{body}
}}
"""
        return c.proxy(side, [self.bin, "-p", c.dir, "-c", c.write(f"{side}.conf", cfg), "-e", f"{c.dir}/{side}.start"])

    def start(self, c):
        t, ca = c.topo, c.certs
        ka = "keepalive 512; keepalive_requests 1000000000;"
        hdr = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;'
        up = f"upstream o {{ server {c.origin_ip}:{c.origin_port}; {ka} }}"
        if t.kind == "hop":
            a = self.launch(c, "a", f"{up}\nserver {{ listen {c.host_a}:{c.pa}; location / {{ proxy_pass http://o; {hdr} }} }}")
            return Running((c.host_a, c.pa), [("A", a)])
        b = self.launch(c, "b", f"""{up}
server {{ listen {c.bind_b}:{c.pb} ssl; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
  ssl_certificate {ca}/server.crt; ssl_certificate_key {ca}/server.key;
  ssl_client_certificate {ca}/ca.pem; ssl_verify_client on; ssl_session_tickets {'on' if t.resume else 'off'};
  ssl_session_cache {'shared:s:20m' if t.resume else 'off'};
  if ($ssl_client_s_dn != "CN={TRUST}client") {{ return 403; }}
  location / {{ proxy_pass http://o; {hdr} }} }}""")
        a = self.launch(c, "a", f"""upstream b {{ server {c.host_b}:{c.pb}; {ka if t.reuse else ''} }}
server {{ listen {c.host_a}:{c.pa}; location / {{ proxy_pass https://b; {hdr}
  proxy_ssl_certificate {ca}/client.crt; proxy_ssl_certificate_key {ca}/client.key; proxy_ssl_verify on;
  proxy_ssl_trusted_certificate {ca}/ca.pem; proxy_ssl_name server.mesh; proxy_ssl_server_name on;
  proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse {'on' if t.resume else 'off'}; }} }}""")
        return Running((c.host_a, c.pa), [("A", a), ("B", b)], None, c.pb)
