"""Envoy, configured as a sidecar pair."""
import json, subprocess

from .certs import TRUST
from .proc import binary
from .topo import Peer, Running


class Envoy(Peer):
    name = "envoy"
    bin = binary("ENVOY_BIN", "envoy", "envoy")

    def available(self):
        return bool(self.bin)

    def tls(self, c, me, other, down, alpn):
        t = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
        common = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": f"{c.certs}/{me}.crt"},
                                  "private_key": {"filename": f"{c.certs}/{me}.key"}}],
            "validation_context": {"trusted_ca": {"filename": f"{c.certs}/ca.pem"}, "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": TRUST + other} if not down else {"prefix": "spiffe://cluster.local/"}}]},
        }
        if alpn:
            common["alpn_protocols"] = alpn
        if down:
            cfg = {"@type": t + "DownstreamTlsContext", "common_tls_context": common, "require_client_certificate": True}
            if not c.topo.resume:
                cfg["disable_stateless_session_resumption"] = True
                cfg["disable_stateful_session_resumption"] = True
        else:
            # Envoy's default is 1 key; TLS 1.3 tickets are single use, so give parallel handshakes a stock
            cfg = {"@type": t + "UpstreamTlsContext", "common_tls_context": common, "sni": "server.mesh",
                   "max_session_keys": 128 if c.topo.resume else 0}
        return {"name": "tls", "typed_config": cfg}

    def cluster(self, name, ip, port, proto, tls=None, reuse=True, http=True):
        cl = {"name": name, "type": "STATIC", "connect_timeout": "5s",
              "circuit_breakers": {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000,
                                                   "max_requests": 100000, "max_retries": 100}]},
              "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
                  {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": port}}}}]}]}}
        if tls:
            cl["transport_socket"] = tls
        if http:
            o = {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                 "explicit_http_config": {"http2_protocol_options": {}} if proto == "h2" else {"http_protocol_options": {}}}
            if not reuse:
                o["common_http_protocol_options"] = {"max_requests_per_connection": 1}
            cl["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": o}
        return cl

    def rbac(self, net):
        rules = {"action": "ALLOW", "policies": {"client": {"permissions": [{"any": True}], "principals": [
            {"authenticated": {"principal_name": {"exact": TRUST + "client"}}}]}}}
        if net:
            return {"name": "envoy.filters.network.rbac", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
                "stat_prefix": "rbac", "rules": rules}}
        return {"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": rules}}

    def listener(self, ip, port, cluster, http, tls=None, rbac=False):
        if http:
            fs = [{"name": "hcm", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "in", "codec_type": "AUTO",
                "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}]}]},
                "http_filters": ([self.rbac(False)] if rbac else []) + [{"name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]
        else:
            fs = ([self.rbac(True)] if rbac else []) + [{"name": "tcp", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "tcp", "cluster": cluster}}]
        ch = {"filters": fs}
        if tls:
            ch["transport_socket"] = tls
        return {"name": "l", "address": {"socket_address": {"address": ip, "port_value": port}}, "filter_chains": [ch]}

    def launch(self, c, side, admin, listener, cluster):
        cfg = {"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
               "static_resources": {"listeners": [listener], "clusters": [cluster]}}
        f = c.write(f"{side}.json", json.dumps(cfg, indent=1))
        return c.proxy(side, [self.bin, "-c", f, "--concurrency", str(c.topo.threads), "--disable-hot-restart", "-l", "warn"])

    def start(self, c):
        t = c.topo
        if t.kind == "hop":
            a = self.launch(c, "a", c.admin_a, self.listener(c.host_a, c.pa, "o", True),
                            self.cluster("o", c.origin_ip, c.origin_port, t.origin))
            return Running((c.host_a, c.pa), [("A", a)])
        http = t.kind == "pair"
        alpn = (["h2"] if t.up == "h2" else ["http/1.1"]) if http else None
        b = self.launch(c, "b", c.admin_b,
                        self.listener(c.bind_b, c.pb, "o", http, self.tls(c, "server", "client", True, alpn), True),
                        self.cluster("o", c.origin_ip, c.origin_port, t.origin, http=http))
        a = self.launch(c, "a", c.admin_a, self.listener(c.host_a, c.pa, "b", http),
                        self.cluster("b", c.host_b, c.pb, t.up, self.tls(c, "client", "server", False, alpn), t.reuse, http))

        def note():
            pre = ["ip", "netns", "exec", c.ns_b] if c.ns_b else []
            try:
                s = subprocess.run(pre + ["curl", "-s", f"http://127.0.0.1:{c.admin_b}/stats?filter=ssl.(handshake|session_reused)$"],
                                   stdout=subprocess.PIPE, timeout=5).stdout.decode()
                return " ".join(x.split(".")[-1] for x in s.splitlines() if "listener" in x and "admin" not in x)
            except Exception:
                return None
        return Running((c.host_a, c.pa), [("A", a), ("B", b)], note, c.pb)


class EnvoyNoTls(Envoy):
    """Ablation, only when asked for by name: the same pair without TLS and without RBAC."""
    name, default = "envoy_notls", False

    def tls(self, *a):
        return None

    def listener(self, ip, port, cluster, http, tls=None, rbac=False):
        return super().listener(ip, port, cluster, http, None, False)
