//! The one table of metrics, for the whole product: name, kind, unit, labels, help.

/// What a label may say decides what happens past the cap: closed sets stay, names become `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Label {
    Reporter,
    SourceWorkload,
    SourceWorkloadNamespace,
    SourceCanonicalService,
    SourceCanonicalRevision,
    SourcePrincipal,
    SourceApp,
    SourceVersion,
    SourceCluster,
    DestinationService,
    DestinationServiceName,
    DestinationServiceNamespace,
    DestinationWorkload,
    DestinationWorkloadNamespace,
    DestinationCanonicalService,
    DestinationCanonicalRevision,
    DestinationPrincipal,
    DestinationApp,
    DestinationVersion,
    DestinationCluster,
    RequestProtocol,
    ResponseCode,
    GrpcResponseStatus,
    ResponseFlags,
    ConnectionSecurityPolicy,
    Rule,
    Kind,
    KeyExchange,
    Cipher,
    Result,
    Principal,
    Revision,
    Digest,
    Component,
    Tag,
    Metric,
    Type,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(&'static Bounds),
}

/// Bounds in ticks, of which `per_unit` make one unit, so that counting needs no floating point.
#[derive(Debug, PartialEq)]
pub struct Bounds {
    pub per_unit: u64,
    /// What scrapers get.
    pub shown: &'static [u64],
    /// What is counted: `shown` and more between, for our own quantiles.
    pub fine: &'static [u64],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    None,
    Bytes,
    Milliseconds,
    Seconds,
}

/// Whose `/metrics` it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Proxy,
    Server,
    Everywhere,
}

#[derive(Debug)]
pub struct Desc {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub place: Where,
    /// Every one of them is always present.
    pub labels: &'static [Label],
    pub help: &'static str,
}

/// Envoy's default bounds in milliseconds, in microseconds: what dashboards made for Istio expect.
pub static MILLISECONDS: Bounds = Bounds {
    per_unit: 1000,
    shown: &[
        500,
        1_000,
        5_000,
        10_000,
        25_000,
        50_000,
        100_000,
        250_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
        600_000_000,
        1_800_000_000,
        3_600_000_000,
    ],
    fine: &[
        100,
        200,
        300,
        400,
        500,
        600,
        700,
        800,
        900,
        1_000,
        1_250,
        1_500,
        2_000,
        2_500,
        3_000,
        4_000,
        5_000,
        6_000,
        8_000,
        10_000,
        15_000,
        20_000,
        25_000,
        35_000,
        50_000,
        75_000,
        100_000,
        150_000,
        250_000,
        350_000,
        500_000,
        750_000,
        1_000_000,
        1_500_000,
        2_500_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
        600_000_000,
        1_800_000_000,
        3_600_000_000,
    ],
};

/// Envoy's default bounds read as bytes, as Istio's sizes are.
pub static SIZES: Bounds = Bounds { per_unit: 1, shown: SIZE_BOUNDS, fine: SIZE_BOUNDS };
const SIZE_BOUNDS: &[u64] = &[
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

/// From what a loopback acknowledgement takes to what nobody should wait for.
pub static SECONDS: Bounds = Bounds { per_unit: 1_000_000, shown: SECOND_BOUNDS, fine: SECOND_BOUNDS };
const SECOND_BOUNDS: &[u64] =
    &[1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000];

macro_rules! edge_labels {
    ($($more:ident),*) => {
        &[
            Label::Reporter,
            Label::SourceWorkload,
            Label::SourceWorkloadNamespace,
            Label::SourceCanonicalService,
            Label::SourceCanonicalRevision,
            Label::SourcePrincipal,
            Label::SourceApp,
            Label::SourceVersion,
            Label::SourceCluster,
            Label::DestinationService,
            Label::DestinationServiceName,
            Label::DestinationServiceNamespace,
            Label::DestinationWorkload,
            Label::DestinationWorkloadNamespace,
            Label::DestinationCanonicalService,
            Label::DestinationCanonicalRevision,
            Label::DestinationPrincipal,
            Label::DestinationApp,
            Label::DestinationVersion,
            Label::DestinationCluster,
            Label::RequestProtocol,
            Label::ResponseFlags,
            Label::ConnectionSecurityPolicy,
            $(Label::$more),*
        ]
    };
}
/// Istio's labels of a connection, in its order.
pub const TCP_LABELS: &[Label] = edge_labels!();
/// Of a request: those and the answer's.
pub const HTTP_LABELS: &[Label] = edge_labels!(ResponseCode, GrpcResponseStatus);

macro_rules! catalogue {
    ($($metric:ident $name:literal $kind:expr, $unit:ident, $place:ident, $labels:expr, $help:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Metric {
            $($metric,)*
        }

        impl Metric {
            pub const ALL: &[Self] = &[$(Self::$metric,)*];

            pub const fn desc(self) -> &'static Desc {
                use self::{Kind::*, Label::*};
                match self {
                    $(Self::$metric => const {
                        &Desc {
                            name: $name,
                            kind: $kind,
                            unit: Unit::$unit,
                            place: Where::$place,
                            labels: $labels,
                            help: $help,
                        }
                    },)*
                }
            }
        }
    };
}

catalogue! {
    // Istio's
    RequestsTotal "istio_requests_total" Counter, None, Proxy, HTTP_LABELS,
        "Requests, those that the proxy answered itself among them.";
    RequestDuration "istio_request_duration_milliseconds" Histogram(&MILLISECONDS), Milliseconds, Proxy, HTTP_LABELS,
        "From the first byte of the request to the last one of the answer.";
    RequestBytes "istio_request_bytes" Histogram(&SIZES), Bytes, Proxy, HTTP_LABELS,
        "Bytes of request bodies.";
    ResponseBytes "istio_response_bytes" Histogram(&SIZES), Bytes, Proxy, HTTP_LABELS,
        "Bytes of response bodies.";
    TcpSentBytes "istio_tcp_sent_bytes_total" Counter, Bytes, Proxy, TCP_LABELS,
        "Bytes sent to whoever opened the connection; told every 5 s.";
    TcpReceivedBytes "istio_tcp_received_bytes_total" Counter, Bytes, Proxy, TCP_LABELS,
        "Bytes received from whoever opened the connection; told every 5 s.";
    TcpOpened "istio_tcp_connections_opened_total" Counter, None, Proxy, TCP_LABELS,
        "Connections opened.";
    TcpClosed "istio_tcp_connections_closed_total" Counter, None, Proxy, TCP_LABELS,
        "Connections closed, however they ended.";
    Build "istio_build" Gauge, None, Everywhere, &[Component, Tag],
        "Always 1; the labels say which build this is.";
    // the proxy's own
    Denied "weft_denied_total" Counter, None, Proxy,
        &[Reporter, SourcePrincipal, DestinationPrincipal, RequestProtocol, Rule],
        "What authorization denied, by the clause that did, or the reason where no clause decided.";
    Handshakes "weft_mesh_handshakes_total" Counter, None, Proxy,
        &[Reporter, SourcePrincipal, DestinationPrincipal, KeyExchange, Cipher, Result],
        "TLS handshakes between proxies; result is ok or the kind of failure.";
    LocalReplies "weft_local_replies_total" Counter, None, Proxy, &[Kind],
        "Requests and connections that the proxy answered or ended itself, by the kind of failure.";
    OpenFlows "weft_open_flows" Gauge, None, Proxy, &[Reporter, RequestProtocol],
        "Requests and connections in progress.";
    CertificateExpiry "weft_certificate_expiry_timestamp_seconds" Gauge, Seconds, Proxy, &[Principal],
        "When the certificate that is in use expires, in seconds since 1970.";
    ConfigInfo "weft_config_info" Gauge, None, Proxy, &[Revision, Digest],
        "Always 1; the labels say which configuration is in force.";
    AccessLogDropped "weft_access_log_dropped_total" Counter, None, Proxy, &[],
        "Lines of the access log that were dropped because its reader was too slow.";
    Folded "weft_metrics_folded_total" Counter, None, Everywhere, &[Metric],
        "Series that were not kept apart because a metric reached its cap; their names count as unknown.";
    // the control plane's
    Convergence "pilot_proxy_convergence_time" Histogram(&SECONDS), Seconds, Server, &[],
        "From a change's publication to its application by a proxy.";
    PushTime "pilot_xds_push_time" Histogram(&SECONDS), Seconds, Server, &[],
        "Folding and compiling one batch of changes.";
    QueueTime "pilot_proxy_queue_time" Histogram(&SECONDS), Seconds, Server, &[],
        "From a change to its being handed to a stream.";
    Pushes "pilot_xds_pushes" Counter, None, Server, &[Type],
        "Responses sent to proxies.";
    Rejects "pilot_total_xds_rejects" Counter, None, Server, &[Type],
        "Sets that proxies rejected.";
    Services "pilot_services" Gauge, None, Server, &[],
        "Services in the catalog.";
    Proxies "pilot_xds" Gauge, None, Server, &[],
        "Proxies connected to this server.";
    ControlSentBytes "weft_control_sent_bytes_total" Counter, Bytes, Server, &[],
        "Bytes of resources sent to proxies.";
    ControlCompiled "weft_control_compiled_total" Counter, None, Server, &[],
        "Collections compiled.";
    ControlJoins "weft_control_joins_total" Counter, None, Server, &[Result],
        "Joins.";
    ControlJoinRefusals "weft_control_join_refusals_total" Counter, None, Server, &[],
        "Joins that were refused.";
    ControlRenewals "weft_control_renewals_total" Counter, None, Server, &[],
        "Identities renewed.";
    ControlStatusWrites "weft_control_status_writes_total" Counter, None, Server, &[],
        "Statuses of resources written.";
    ControlEndpoints "weft_control_endpoints" Gauge, None, Server, &[],
        "Instances in the catalog.";
    ControlCollections "weft_control_collections" Gauge, None, Server, &[],
        "Collections that somebody subscribed to.";
    ControlRevision "weft_control_revision" Gauge, None, Server, &[],
        "The revision that this server has reached.";
    // every process's
    ProcessResident "process_resident_memory_bytes" Gauge, Bytes, Everywhere, &[],
        "Resident memory.";
    ProcessCpu "process_cpu_seconds_total" Counter, Seconds, Everywhere, &[],
        "Processor time used, of user and of kernel.";
    ProcessFds "process_open_fds" Gauge, None, Everywhere, &[],
        "Open file descriptors.";
    ProcessStart "process_start_time_seconds" Gauge, Seconds, Everywhere, &[],
        "When the process started, in seconds since 1970.";
}

impl Label {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reporter => "reporter",
            Self::SourceWorkload => "source_workload",
            Self::SourceWorkloadNamespace => "source_workload_namespace",
            Self::SourceCanonicalService => "source_canonical_service",
            Self::SourceCanonicalRevision => "source_canonical_revision",
            Self::SourcePrincipal => "source_principal",
            Self::SourceApp => "source_app",
            Self::SourceVersion => "source_version",
            Self::SourceCluster => "source_cluster",
            Self::DestinationService => "destination_service",
            Self::DestinationServiceName => "destination_service_name",
            Self::DestinationServiceNamespace => "destination_service_namespace",
            Self::DestinationWorkload => "destination_workload",
            Self::DestinationWorkloadNamespace => "destination_workload_namespace",
            Self::DestinationCanonicalService => "destination_canonical_service",
            Self::DestinationCanonicalRevision => "destination_canonical_revision",
            Self::DestinationPrincipal => "destination_principal",
            Self::DestinationApp => "destination_app",
            Self::DestinationVersion => "destination_version",
            Self::DestinationCluster => "destination_cluster",
            Self::RequestProtocol => "request_protocol",
            Self::ResponseCode => "response_code",
            Self::GrpcResponseStatus => "grpc_response_status",
            Self::ResponseFlags => "response_flags",
            Self::ConnectionSecurityPolicy => "connection_security_policy",
            Self::Rule => "rule",
            Self::Kind => "kind",
            Self::KeyExchange => "key_exchange",
            Self::Cipher => "cipher",
            Self::Result => "result",
            Self::Principal => "principal",
            Self::Revision => "revision",
            Self::Digest => "digest",
            Self::Component => "component",
            Self::Tag => "tag",
            Self::Metric => "metric",
            Self::Type => "type",
        }
    }

    /// Its values come from a short list in our code (or from HTTP's), never from a peer's or an operator's words.
    pub const fn is_closed(self) -> bool {
        matches!(
            self,
            Self::Reporter
                | Self::RequestProtocol
                | Self::ResponseCode
                | Self::GrpcResponseStatus
                | Self::ResponseFlags
                | Self::ConnectionSecurityPolicy
                | Self::Kind
                | Self::KeyExchange
                | Self::Cipher
                | Self::Result
                | Self::Component
                | Self::Metric
                | Self::Type
        )
    }
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Unit {
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Bytes => "bytes",
            Self::Milliseconds => "milliseconds",
            Self::Seconds => "seconds",
        }
    }
}

/// `docs/metrics.md`, whole.
pub fn document() -> String {
    let mut out = String::from(
        "# Metrics\n\n<!-- Generated from the catalogue in `crates/weft-rt/src/metrics/catalogue.rs`: \
         `WEFT_WRITE=1 cargo test -p weft-rt docs_metrics` writes it. -->\n\n\
         Proxies serve them at `/metrics` and `/stats/prometheus`, the server at `/metrics`, in Prometheus' text format or, \
         when asked, OpenMetrics. Every label is always there; a name that is not known is `unknown`, and `response_flags` is \
         `-` where nothing went wrong. A metric keeps up to 2,000 series apart; past that, names count as `unknown`.\n",
    );
    for (place, title) in
        [(Where::Proxy, "Proxies"), (Where::Server, "The server"), (Where::Everywhere, "Every process")]
    {
        out.push_str(&format!("\n## {title}\n\n| metric | kind | unit | what | labels |\n|---|---|---|---|---|\n"));
        for d in Metric::ALL.iter().map(|m| m.desc()).filter(|d| d.place == place) {
            let labels = match d.labels {
                HTTP_LABELS => "those of a request".into(),
                TCP_LABELS => "those of a connection".into(),
                [] => "-".into(),
                labels => names(labels),
            };
            let (name, kind, unit) = (d.name, d.kind.name(), d.unit.name());
            out.push_str(&format!("| `{name}` | {kind} | {unit} | {} | {labels} |\n", d.help));
        }
    }
    out.push_str(&format!("\nLabels of a connection: {}.\n", names(TCP_LABELS)));
    out.push_str(
        "\nLabels of a request: those, `response_code`, `grpc_response_status` (empty where it is not gRPC).\n",
    );
    out
}

fn names(labels: &[Label]) -> String {
    let quoted: Vec<String> = labels.iter().map(|l| format!("`{}`", l.name())).collect();
    quoted.join(", ")
}
