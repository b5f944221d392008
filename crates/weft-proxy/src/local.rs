//! Answers that the proxy makes itself (features.md TRF-35): status, machine code, and for meshed callers the rule.

use http::{HeaderValue, StatusCode, header};

use crate::{
    codec::{Body, RequestHead, ResponseHead},
    failure::Failure,
    head,
};

/// Who reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A peer with an identity of the mesh, or the application beside this proxy.
    Meshed,
    /// Anybody else: no names leave the mesh.
    Outside,
}

/// What is told of a failed request.
pub fn answer(failure: &Failure, request: &Asked, caller: Caller) -> (ResponseHead, Body) {
    let face = failure.kind.face();
    let mut text = words(failure, caller);
    let mut head = ResponseHead::new(StatusCode::from_u16(face.http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    told(&mut head, failure, caller);
    if request.grpc {
        head.status = StatusCode::OK;
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers.insert("grpc-status", HeaderValue::from(u16::from(face.grpc)));
        if let Ok(v) = HeaderValue::from_str(&percent(&text)) {
            head.headers.insert("grpc-message", v);
        }
        return (head, Body::empty());
    }
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    text.push('\n');
    (head, Body::full(text))
}

/// What is told of a request whose head could not be read, so that nothing is known of it. `status`: more exact than the
/// kind's.
pub fn unreadable(failure: &Failure, status: StatusCode) -> (ResponseHead, String) {
    let (mut head, _) = answer(failure, &Asked { grpc: false }, Caller::Meshed);
    head.status = status;
    (head, words(failure, Caller::Meshed) + "\n")
}

/// `weft: <machine code>: <what it means> (<rule>): <what else is known>`
fn words(failure: &Failure, caller: Caller) -> String {
    let mut text = format!("weft: {}: {}", failure.kind.label(), failure.kind.sentence());
    if caller == Caller::Meshed {
        if let Some(rule) = &failure.rule {
            text.push_str(&format!(" ({rule})"));
        }
        if let Some(detail) = &failure.detail {
            text.push_str(&format!(": {detail}"));
        }
    }
    text
}

/// What is told of a refused CONNECT: status and fields, no body.
pub fn refusal(failure: &Failure) -> ResponseHead {
    let mut head =
        ResponseHead::new(StatusCode::from_u16(failure.kind.face().connect).unwrap_or(StatusCode::BAD_GATEWAY));
    told(&mut head, failure, Caller::Meshed);
    head
}

fn told(head: &mut ResponseHead, failure: &Failure, caller: Caller) {
    if let Ok(v) = HeaderValue::from_str(&failure.kind.header(failure.sent())) {
        head.headers.insert(head::FAILURE, v);
    }
    if caller == Caller::Meshed
        && let Some(rule) = &failure.rule
        && let Ok(v) = HeaderValue::from_str(&rule.to_string())
    {
        head.headers.insert(head::RULE, v);
    }
}

/// What of the request the answer depends on; the head itself may be gone by then.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub grpc: bool,
}

impl Asked {
    pub fn of(head: &RequestHead) -> Self {
        Self { grpc: head.is_grpc() }
    }
}

/// gRPC's encoding of messages: everything but printable ASCII, and `%` itself.
fn percent(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        if (b' '..=b'~').contains(&b) && b != b'%' {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::failure::{FailureKind, Side};

    fn denied() -> Failure {
        let rule = "AuthorizationPolicy/shop/stock#rule-0".parse().unwrap();
        Failure::new(FailureKind::Denied, Side::Policy).with_rule(Some(Arc::new(rule)))
    }

    #[test]
    fn trf_35_names_leave_the_mesh_only_for_meshed_callers() {
        let (head, body) = answer(&denied(), &Asked { grpc: false }, Caller::Meshed);
        assert_eq!(head.status, 403);
        assert_eq!(head.headers["weft-failure"], "denied;sent");
        assert_eq!(head.headers["weft-rule"], "AuthorizationPolicy/shop/stock#rule-0");
        assert!(body.length().unwrap() > 0);
        let (head, _) = answer(&denied(), &Asked { grpc: false }, Caller::Outside);
        assert_eq!(head.headers["weft-failure"], "denied;sent");
        assert!(!head.headers.contains_key("weft-rule"));
    }

    #[test]
    fn trf_35_grpc_gets_trailers_only() {
        let (head, body) = answer(&denied(), &Asked { grpc: true }, Caller::Meshed);
        assert_eq!((head.status.as_u16(), body.is_end()), (200, true));
        assert_eq!(head.headers["grpc-status"], "7");
        assert_eq!(head.headers["content-type"], "application/grpc");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent("100 % ü\n"), "100 %25 %C3%BC%0A");
    }
}
