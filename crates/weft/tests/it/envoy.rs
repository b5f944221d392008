//! Envoy as a test runs it: TCP clients tunnelled into the mesh, or tunnels ended, over mTLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use weft_identity::Svid;
use weft_model::SpiffeId;

use crate::mesh::{Mesh, connect, eventually, free_addr, write};

pub struct Envoy {
    child: Child,
    log: PathBuf,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    /// Until it listens at `at`.
    fn start(mesh: &Mesh, program: &Path, at: SocketAddr, listener: &Value, clusters: &[Value]) -> Self {
        let config = json!({ "static_resources": { "listeners": [listener], "clusters": clusters } });
        let config = write(mesh.dir.path(), &format!("envoy-{at}.json"), &config.to_string());
        let log = mesh.dir.path().join(format!("envoy-{at}.log"));
        let out = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(config).args(["--concurrency", "1", "--disable-hot-restart"]);
        // each handshake's verdict
        command.args(["-l", "warning", "--component-log-level", "connection:debug"]);
        let child = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        let envoy = Self { child, log };
        eventually("Envoy listens", || connect(at).map(drop).map_err(|e| format!("{e}; {}", envoy.log())));
        envoy
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn until_logged(&self, wanted: &str) {
        eventually(wanted, || if self.log().contains(wanted) { Ok(()) } else { Err(self.log()) });
    }
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

fn cluster(name: &str, at: SocketAddr) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(at) } }] }] }
    })
}

/// What HBONE is spoken with: our certificate, exactly one identity of the mesh's authority expected.
pub struct Tls<'a> {
    pub own: &'a Svid,
    pub expected: &'a SpiffeId,
    /// As a client Envoy offers at most 1.2 unless it is told.
    pub version: &'static str,
}

impl<'a> Tls<'a> {
    pub fn new(own: &'a Svid, expected: &'a SpiffeId) -> Self {
        Self { own, expected, version: "TLSv1_3" }
    }

    fn config(&self, mesh: &Mesh) -> Value {
        let serial = self.own.serial();
        let file = |name: &str, pem: &str| write(mesh.dir.path(), &format!("{serial}-{name}.pem"), pem);
        json!({
            "alpn_protocols": ["h2"],
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": self.version },
            "tls_certificates": [{
                "certificate_chain": { "filename": file("chain", &self.own.chain_pem()) },
                "private_key": { "filename": file("key", &self.own.key_pem()) }
            }],
            "validation_context": {
                "trusted_ca": { "filename": file("root", &mesh.credentials("asker").trust.bundle.to_pem()) },
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": self.expected.to_string() } }]
            }
        })
    }
}

/// An Envoy whose TCP clients are tunnelled to the service's one endpoint. It, and where they find it.
pub fn tunnelling(mesh: &Mesh, envoy: &Path, tls: &Tls<'_>, service: &str) -> (Envoy, SocketAddr) {
    let (at, (mesh_port, app)) = (free_addr(), mesh.addresses(service));
    let tcp = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tunnel", "cluster": "mesh", "tunneling_config": { "hostname": app.to_string() }
    });
    let listener = json!({
        "name": "in", "address": address(at),
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": tcp }] }]
    });
    let mut cluster = cluster("mesh", mesh_port);
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": tls.config(mesh)
        }
    });
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} }
        }
    });
    (Envoy::start(mesh, envoy, at, &listener, &[cluster]), at)
}

/// An Envoy that ends tunnels at `at` and takes each to the application that its CONNECT names by port.
pub fn terminating(mesh: &Mesh, envoy: &Path, tls: &Tls<'_>, at: SocketAddr, apps: &[(u16, SocketAddr)]) -> Envoy {
    let host = |(port, _): &(u16, SocketAddr)| {
        let name = format!("app-{port}");
        json!({
            "name": name, "domains": [format!("{}:{port}", at.ip())],
            "routes": [{
                "match": { "connect_matcher": {} },
                "route": { "cluster": name, "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] }
            }]
        })
    };
    let http = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone", "codec_type": "HTTP2",
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "route_config": { "virtual_hosts": apps.iter().map(host).collect::<Vec<_>>() },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }]
    });
    let socket = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": tls.config(mesh)
        }
    });
    let listener = json!({
        "name": "hbone", "address": address(at),
        "filter_chains": [{
            "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": http }],
            "transport_socket": socket
        }]
    });
    let clusters: Vec<_> = apps.iter().map(|(port, app)| cluster(&format!("app-{port}"), *app)).collect();
    Envoy::start(mesh, envoy, at, &listener, &clusters)
}
