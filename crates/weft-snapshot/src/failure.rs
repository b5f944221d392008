//! Every refusal and failure that a proxy produces by itself, and how each is told (features.md OBS-14, TRF-35).
//!
//! One kind, one row: HTTP status, gRPC status, status of a refused CONNECT, response flag, and the machine code that is
//! both the metric label and the `weft-failure` header.

/// Declares the kinds and [`FailureKind::ALL`] from one list, so that neither can lack what the other has.
macro_rules! closed_list {
    ($(#[$meta:meta])* pub enum $name:ident { $($kind:ident),* $(,)? }) => {
        $(#[$meta])*
        pub enum $name {
            $($kind),*
        }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$kind),*];
        }
    };
}

closed_list! {
    /// The closed list. Who is to blame (side) and the source are the proxy's to add.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum FailureKind {
        // what was asked for
        NoRoute,
        BackendUnresolved,
        BackendsAllZero,
        UnknownService,
        Misdirected,
        BadTarget,
        Loop,
        // where it should have gone
        NoHealthyEndpoint,
        ConnectFailed,
        ConnectTimeout,
        AppConnectFailed,
        TlsFailed,
        IdentityMismatch,
        UpstreamRefused,
        UpstreamClosed,
        UpstreamReset,
        UpstreamProtocol,
        ResponseHeadTooLarge,
        RequestTimeout,
        TryTimeout,
        UpstreamIdle,
        RetriesExhausted,
        // who asked
        Denied,
        PlaintextRefused,
        NotHttp,
        PolicyChanged,
        PeerUntrusted,
        PeerRevoked,
        // how it was asked
        BadRequest,
        AmbiguousPath,
        RequestHeadTooLarge,
        DownstreamClosed,
        DownstreamIdle,
        RateLimited,
        FaultAborted,
        FaultDelayed,
        // ourselves
        Overloaded,
        Draining,
        NoIdentity,
        IdentityExpired,
        NoSnapshot,
        Internal,
    }
}

/// How a kind is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Face {
    pub http: u16,
    pub grpc: u8,
    /// What a refused CONNECT gets (features.md 4.7).
    pub connect: u16,
    /// Envoy's short form where Envoy has one; the node proxy's names of ztunnel; else our own.
    pub flag: &'static str,
    /// Metric label and machine code.
    pub label: &'static str,
}

/// Did any of the request leave for the application? What was not sent may be tried elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    NotSent,
    Sent,
}

/// The header that carries kind and [`Sent`] between proxies, and to meshed callers.
pub const FAILURE_HEADER: &str = "weft-failure";

mod grpc {
    pub const CANCELLED: u8 = 1;
    pub const DEADLINE_EXCEEDED: u8 = 4;
    pub const PERMISSION_DENIED: u8 = 7;
    pub const RESOURCE_EXHAUSTED: u8 = 8;
    pub const UNIMPLEMENTED: u8 = 12;
    pub const INTERNAL: u8 = 13;
    pub const UNAVAILABLE: u8 = 14;
    pub const UNAUTHENTICATED: u8 = 16;
}

// === impl FailureKind ===

impl FailureKind {
    /// The one table.
    pub const fn face(self) -> Face {
        const fn f(http: u16, grpc: u8, connect: u16, flag: &'static str, label: &'static str) -> Face {
            Face { http, grpc, connect, flag, label }
        }
        use grpc::*;
        match self {
            Self::NoRoute => f(404, UNIMPLEMENTED, 404, "NR", "no_route"),
            Self::BackendUnresolved => f(500, UNAVAILABLE, 503, "NC", "backend_unresolved"),
            Self::BackendsAllZero => f(500, UNAVAILABLE, 503, "NC", "backends_all_zero"),
            Self::UnknownService => f(503, UNAVAILABLE, 503, "NC", "unknown_service"),
            Self::Misdirected => f(421, UNAVAILABLE, 421, "NR", "misdirected"),
            Self::BadTarget => f(400, INTERNAL, 400, "NR", "bad_target"),
            Self::Loop => f(508, INTERNAL, 508, "LOOP", "loop"),
            Self::NoHealthyEndpoint => f(503, UNAVAILABLE, 503, "UH", "no_healthy_endpoint"),
            Self::ConnectFailed => f(503, UNAVAILABLE, 503, "UF", "connect_failed"),
            Self::ConnectTimeout => f(503, UNAVAILABLE, 503, "UF", "connect_timeout"),
            Self::AppConnectFailed => f(503, UNAVAILABLE, 503, "UF", "app_connect_failed"),
            Self::TlsFailed => f(503, UNAVAILABLE, 503, "TLS_FAILURE", "tls_failed"),
            Self::IdentityMismatch => f(503, UNAVAILABLE, 503, "IDENTITY_ERROR", "identity_mismatch"),
            Self::UpstreamRefused => f(503, UNAVAILABLE, 503, "UR", "upstream_refused"),
            Self::UpstreamClosed => f(503, UNAVAILABLE, 503, "UC", "upstream_closed"),
            Self::UpstreamReset => f(503, UNAVAILABLE, 503, "UR", "upstream_reset"),
            Self::UpstreamProtocol => f(502, UNAVAILABLE, 502, "UPE", "upstream_protocol"),
            Self::ResponseHeadTooLarge => f(502, UNAVAILABLE, 502, "UPE", "response_head_too_large"),
            Self::RequestTimeout => f(504, DEADLINE_EXCEEDED, 504, "UT", "request_timeout"),
            Self::TryTimeout => f(504, DEADLINE_EXCEEDED, 504, "UT", "try_timeout"),
            Self::UpstreamIdle => f(504, DEADLINE_EXCEEDED, 504, "SI", "upstream_idle"),
            Self::RetriesExhausted => f(503, UNAVAILABLE, 503, "URX", "retries_exhausted"),
            Self::Denied => f(403, PERMISSION_DENIED, 401, "DENY", "denied"),
            Self::PlaintextRefused => f(403, UNAUTHENTICATED, 401, "DENY", "plaintext_refused"),
            Self::NotHttp => f(403, PERMISSION_DENIED, 401, "DENY", "not_http"),
            Self::PolicyChanged => f(403, PERMISSION_DENIED, 401, "DENY", "policy_changed"),
            Self::PeerUntrusted => f(403, UNAUTHENTICATED, 401, "TLS_FAILURE", "peer_untrusted"),
            Self::PeerRevoked => f(403, UNAUTHENTICATED, 401, "CERT_REVOKED", "peer_revoked"),
            Self::BadRequest => f(400, INTERNAL, 400, "DPE", "bad_request"),
            Self::AmbiguousPath => f(400, INTERNAL, 400, "DPE", "ambiguous_path"),
            Self::RequestHeadTooLarge => f(431, RESOURCE_EXHAUSTED, 431, "DPE", "request_head_too_large"),
            // nginx's number for the log; nobody is left to read an answer
            Self::DownstreamClosed => f(499, CANCELLED, 499, "DC", "downstream_closed"),
            Self::DownstreamIdle => f(408, DEADLINE_EXCEEDED, 408, "SI", "downstream_idle"),
            Self::RateLimited => f(429, RESOURCE_EXHAUSTED, 429, "RL", "rate_limited"),
            Self::FaultAborted => f(503, UNAVAILABLE, 503, "FI", "fault_aborted"),
            Self::FaultDelayed => f(504, DEADLINE_EXCEEDED, 504, "DI", "fault_delayed"),
            Self::Overloaded => f(503, UNAVAILABLE, 503, "UO", "overloaded"),
            Self::Draining => f(503, UNAVAILABLE, 503, "DRAIN", "draining"),
            Self::NoIdentity => f(503, UNAVAILABLE, 503, "IDENTITY_ERROR", "no_identity"),
            Self::IdentityExpired => f(503, UNAVAILABLE, 503, "IDENTITY_ERROR", "identity_expired"),
            Self::NoSnapshot => f(503, UNAVAILABLE, 503, "NC", "no_snapshot"),
            Self::Internal => f(500, INTERNAL, 500, "LR", "internal"),
        }
    }

    pub const fn http_status(self) -> u16 {
        self.face().http
    }

    pub const fn grpc_status(self) -> u8 {
        self.face().grpc
    }

    pub const fn flag(self) -> &'static str {
        self.face().flag
    }

    pub const fn label(self) -> &'static str {
        self.face().label
    }

    /// A short sentence for people; what is known besides (addresses, rules) is added by whoever reports it.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoRoute => "no route of the service matches the request",
            Self::BackendUnresolved => "the route's backend does not exist",
            Self::BackendsAllZero => "all backends of the route have weight 0",
            Self::UnknownService => "no such service is visible from here",
            Self::Misdirected => "the request came to a workload that does not serve what it names",
            Self::BadTarget => "the CONNECT names no address of this workload",
            Self::Loop => "the request passed through too many proxies",
            Self::NoHealthyEndpoint => "the service has no endpoint that may be used",
            Self::ConnectFailed => "the endpoint could not be connected to",
            Self::ConnectTimeout => "the endpoint did not accept a connection in time",
            Self::AppConnectFailed => "the application does not accept connections on its port",
            Self::TlsFailed => "the TLS handshake with the endpoint failed",
            Self::IdentityMismatch => "the endpoint presented another identity than expected",
            Self::UpstreamRefused => "the endpoint refused the request before working on it",
            Self::UpstreamClosed => "the endpoint closed the connection before it answered",
            Self::UpstreamReset => "the endpoint reset the request",
            Self::UpstreamProtocol => "the endpoint's answer is not valid HTTP",
            Self::ResponseHeadTooLarge => "the header of the endpoint's answer is too large",
            Self::RequestTimeout => "the request took longer than its route allows",
            Self::TryTimeout => "the endpoint took longer than its route allows for one try",
            Self::UpstreamIdle => "the endpoint sent nothing for too long",
            Self::RetriesExhausted => "every try failed",
            Self::Denied => "policy denies it",
            Self::PlaintextRefused => "the port accepts mTLS only and the peer came in plaintext",
            Self::NotHttp => "policy reads requests and the connection is not HTTP",
            Self::PolicyChanged => "policy changed and no longer allows it",
            Self::PeerUntrusted => "the peer's certificate could not be verified",
            Self::PeerRevoked => "the peer's identity was revoked",
            Self::BadRequest => "the request is not valid HTTP",
            Self::AmbiguousPath => "the path could mean one thing to policy and another to the application",
            Self::RequestHeadTooLarge => "the request's header is too large",
            Self::DownstreamClosed => "the caller went away",
            Self::DownstreamIdle => "the caller sent nothing for too long",
            Self::RateLimited => "a rate limit is reached",
            Self::FaultAborted => "a fault drill aborted it",
            Self::FaultDelayed => "a fault drill delayed it beyond its time",
            Self::Overloaded => "a connection or request limit is reached",
            Self::Draining => "the proxy is going away",
            Self::NoIdentity => "the proxy has no identity yet",
            Self::IdentityExpired => "the proxy's identity has expired",
            Self::NoSnapshot => "the proxy was not told anything by its control plane yet",
            Self::Internal => "the proxy failed",
        }
    }

    /// A verdict about the request or its caller: wherever else it is asked, it is the same, so it is not asked again.
    pub const fn is_verdict(self) -> bool {
        match self {
            Self::Denied
            | Self::PlaintextRefused
            | Self::NotHttp
            | Self::PolicyChanged
            | Self::PeerUntrusted
            | Self::PeerRevoked
            | Self::BadRequest
            | Self::AmbiguousPath
            | Self::RequestHeadTooLarge
            | Self::Loop
            | Self::RateLimited
            | Self::FaultAborted
            | Self::FaultDelayed => true,
            Self::NoRoute
            | Self::BackendUnresolved
            | Self::BackendsAllZero
            | Self::UnknownService
            | Self::Misdirected
            | Self::BadTarget
            | Self::NoHealthyEndpoint
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::AppConnectFailed
            | Self::TlsFailed
            | Self::IdentityMismatch
            | Self::UpstreamRefused
            | Self::UpstreamClosed
            | Self::UpstreamReset
            | Self::UpstreamProtocol
            | Self::ResponseHeadTooLarge
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::UpstreamIdle
            | Self::RetriesExhausted
            | Self::DownstreamClosed
            | Self::DownstreamIdle
            | Self::Overloaded
            | Self::Draining
            | Self::NoIdentity
            | Self::IdentityExpired
            | Self::NoSnapshot
            | Self::Internal => false,
        }
    }

    /// From its machine code.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|k| k.label() == label)
    }

    /// The value of the `weft-failure` header.
    pub fn header(self, sent: Sent) -> String {
        let sent = match sent {
            Sent::NotSent => "not-sent",
            Sent::Sent => "sent",
        };
        format!("{};{sent}", self.label())
    }
}

impl std::fmt::Display for FailureKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// Of a `weft-failure` header; what a newer proxy calls by a name that is not known here still says whether it was sent.
/// Anything else counts as sent.
pub fn parse_header(value: &[u8]) -> (Option<FailureKind>, Sent) {
    let Some((label, sent)) = std::str::from_utf8(value).ok().and_then(|v| v.split_once(';')) else {
        return (None, Sent::Sent);
    };
    let sent = if sent == "not-sent" { Sent::NotSent } else { Sent::Sent };
    (FailureKind::from_label(label), sent)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn obs_14_every_kind_has_its_own_label_and_a_status() {
        let mut labels = BTreeSet::new();
        for kind in FailureKind::ALL {
            let face = kind.face();
            assert!(labels.insert(face.label), "{kind:?} shares its label");
            assert!((400..600).contains(&face.http) && (400..600).contains(&face.connect), "{kind:?}");
            assert!((1..=16).contains(&face.grpc), "{kind:?}");
            assert!(face.label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{kind:?}");
            assert!(
                !face.flag.is_empty() && face.flag.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
                "{kind:?}"
            );
            assert_eq!(FailureKind::from_label(face.label), Some(*kind));
        }
    }

    #[test]
    fn obs_14_flags_are_envoys() {
        let check =
            |kind: FailureKind, http, flag| assert_eq!((kind.http_status(), kind.flag()), (http, flag), "{kind:?}");
        check(FailureKind::NoRoute, 404, "NR");
        check(FailureKind::NoHealthyEndpoint, 503, "UH");
        check(FailureKind::ConnectFailed, 503, "UF");
        check(FailureKind::UpstreamClosed, 503, "UC");
        check(FailureKind::RequestTimeout, 504, "UT");
        check(FailureKind::RetriesExhausted, 503, "URX");
        check(FailureKind::DownstreamClosed, 499, "DC");
        check(FailureKind::FaultDelayed, 504, "DI");
        check(FailureKind::RateLimited, 429, "RL");
        check(FailureKind::Misdirected, 421, "NR");
        check(FailureKind::Loop, 508, "LOOP");
        check(FailureKind::BackendUnresolved, 500, "NC");
        assert_eq!(FailureKind::Denied.face().connect, 401);
    }

    #[test]
    fn trf_35_header_round_trips_and_doubt_counts_as_sent() {
        for kind in FailureKind::ALL {
            for sent in [Sent::NotSent, Sent::Sent] {
                assert_eq!(parse_header(kind.header(sent).as_bytes()), (Some(*kind), sent));
            }
        }
        assert_eq!(parse_header(b"invented_later;not-sent"), (None, Sent::NotSent));
        for odd in [&b""[..], b"denied", b"denied;", b"denied;maybe", b"\xff;not-sent", b"denied;not-sent;x"] {
            assert_eq!(parse_header(odd).1, Sent::Sent, "{odd:?}");
        }
    }
}
