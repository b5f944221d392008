"""ztunnel (L4, HBONE): needs the namespaces, and a build with its `testing` feature."""
import subprocess

from .proc import binary, sh
from .topo import IP_A, IP_B, Peer, Running


class Ztunnel(Peer):
    """Two dedicated-mode ztunnels, one per namespace, local xDS file and its fake CA (a build with its `testing`
    feature). A takes connections that iptables redirects, as in a pod."""
    name = "ztunnel"
    bin = binary("ZTUNNEL_BIN", "ztunnel")

    def available(self):
        return bool(self.bin)

    def supports(self, t):
        return t.kind == "l4" and t.net == "ns"

    def start(self, c):
        port = c.origin_port
        cfg = f"""workloads:
- {{uid: cluster1//v1/Pod/default/client, name: client, namespace: default, serviceAccount: client,
   trustDomain: cluster.local, workloadIps: ["{IP_A}"], protocol: HBONE, node: a, network: "", services: {{}}}}
- {{uid: cluster1//v1/Pod/default/server, name: server, namespace: default, serviceAccount: server,
   trustDomain: cluster.local, workloadIps: ["{IP_B}"], protocol: HBONE, node: b, network: "", services: {{}}}}
policies:
- action: Allow
  name: only-client
  namespace: default
  scope: Namespace
  dryRun: false
  rules:
  - - - principals: [!Exact "cluster.local/ns/default/sa/client"]
services: []
"""
        f = c.write("xds.yaml", cfg)
        env = {"FAKE_CA": "true", "XDS_ADDRESS": "", "LOCAL_XDS_PATH": f, "PROXY_MODE": "dedicated", "RUST_LOG": "warn",
               "ZTUNNEL_WORKER_THREADS": str(c.topo.threads), "PACKET_MARK": "1337", "IPV6_ENABLED": "false",
               "ENABLE_ORIG_SRC": "false"}     # else B dials the origin from the client address, which needs more routing
        for side, ns, who in (("b", c.ns_b, "server"), ("a", c.ns_a, "client")):
            e = dict(env, PROXY_WORKLOAD_INFO=f"default/{who}/{who}", NODE_NAME=side)
            p = c.proxy(side, [self.bin, "proxy", "ztunnel"], e)
            if side == "b":
                b = p
        # only the traffic meant for ztunnel is redirected: its entry is a second address of B
        rule = ["ip", "netns", "exec", c.ns_a, "iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", IP_B,
                "--dport", str(c.run.zt_port), "-m", "mark", "!", "--mark", "1337", "-j", "REDIRECT", "--to-ports", "15001"]
        sh(*rule)
        run = Running((IP_B, c.run.zt_port), [("A", p), ("B", b)], None, 15008)
        undo = ["-D" if x == "-A" else x for x in rule]
        old = run.stop

        def stop():
            if p.alive():
                subprocess.run(undo)
            old()
        run.stop = stop
        return run
