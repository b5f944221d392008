//! What the proxy adds to heads, takes out of them, and reads in them.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header, uri::Authority};
use weft_model::ServiceKey;
use weft_rt::Dice;
use weft_snapshot::{
    fragment::HeaderEdit,
    request::{Headers, Request},
};

use crate::codec::{Origin, RequestHead};

/// Which port of which service is meant: a claim, used to choose a port of the workload that this connection reached.
pub const TO: HeaderName = HeaderName::from_static("weft-to");
/// How the request was written before it travelled as HTTP/2.
pub const ORIG: HeaderName = HeaderName::from_static("weft-orig");
pub const HOPS: HeaderName = HeaderName::from_static("weft-hops");
pub const FAILURE: HeaderName = HeaderName::from_static(weft_snapshot::failure::FAILURE_HEADER);
/// The clause that decided, for meshed callers.
pub const RULE: HeaderName = HeaderName::from_static("weft-rule");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const PREFIX: &str = "weft-";

/// More proxies than that on one request's way are a loop.
pub const MAX_HOPS: u8 = 8;

/// A head as decisions read it.
#[derive(Debug, Clone, Copy)]
pub struct Borrowed<'a>(pub &'a RequestHead);

impl<'a> Borrowed<'a> {
    pub fn request(&'a self) -> Request<'a> {
        Request { method: self.0.method.as_str(), path: self.0.path_str(), host: self.0.host_str(), headers: self }
    }

    /// With another path: the normalized one.
    pub fn request_at(&'a self, path: &'a str) -> Request<'a> {
        Request { path, ..self.request() }
    }
}

impl Headers for Borrowed<'_> {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        // Host is not in the map, and policies may ask for it
        if name == "host" {
            f(self.0.host_str().as_bytes());
            return;
        }
        for v in self.0.headers.get_all(name) {
            f(v.as_bytes());
        }
    }
}

/// How Istio's proxies tell an application whom they authenticated. From anybody else it is a lie.
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Removes every `weft-*` field, and whatever claims to be a proxy's word on who calls: from applications they mean nothing,
/// and to applications they are not sent.
pub fn strip(headers: &mut HeaderMap) {
    let is_ours = |k: &HeaderName| k.as_str().starts_with(PREFIX) || k.as_str() == CLIENT_CERT;
    if !headers.keys().any(is_ours) {
        return;
    }
    let ours: Vec<HeaderName> = headers.keys().filter(|k| is_ours(k)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The request's id: kept, or made.
pub fn request_id(head: &mut RequestHead, dice: &mut Dice) -> Arc<str> {
    /// What comes from an application becomes part of logs: no longer than any sane id.
    const LONGEST: usize = 128;
    if let Some(id) = head.headers.get(REQUEST_ID).and_then(|v| v.to_str().ok())
        && !id.is_empty()
        && id.len() <= LONGEST
    {
        return id.into();
    }
    let id = uuid(dice);
    if let Ok(mut v) = HeaderValue::from_bytes(&id) {
        // Never the same twice: as "sensitive" it stays out of HPACK's table, where it would displace what repeats
        v.set_sensitive(true);
        head.headers.insert(REQUEST_ID, v);
    }
    std::str::from_utf8(&id).unwrap_or_default().into()
}

/// A version 4 UUID.
fn uuid(dice: &mut Dice) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let hi = (dice.next_u64() & 0xFFFF_FFFF_FFFF_0FFF) | 0x4000;
    let lo = (dice.next_u64() & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000;
    let mut rest = u128::from(hi) << 64 | u128::from(lo);
    let mut out = [b'-'; 36];
    for (_, digit) in out.iter_mut().enumerate().filter(|(i, _)| !matches!(i, 8 | 13 | 18 | 23)) {
        *digit = HEX.get(usize::try_from(rest >> 124).unwrap_or(0)).copied().unwrap_or(b'0');
        rest <<= 4;
    }
    out
}

/// Counts this hop; `None`: one too many.
pub fn count_hop(headers: &mut HeaderMap) -> Option<u8> {
    let before = headers.get(HOPS).and_then(|v| v.to_str().ok()).map_or(Some(0), |v| v.parse::<u8>().ok())?;
    let now = before.checked_add(1).filter(|n| *n <= MAX_HOPS)?;
    headers.insert(HOPS, HeaderValue::from(u16::from(now)));
    Some(now)
}

/// `weft-orig` of a request, if it needs one.
pub fn orig_value(origin: Origin) -> Option<HeaderValue> {
    Some(HeaderValue::from_static(match origin {
        Origin::Http10 => "1.0",
        Origin::Http11 { absolute: false } => "1.1",
        Origin::Http11 { absolute: true } => "1.1;absolute",
        Origin::Http2 => return None,
    }))
}

/// What `weft-orig` says; no such field, or one that is not understood: it was HTTP/2.
pub fn orig(headers: &HeaderMap) -> Origin {
    match headers.get(ORIG).map(HeaderValue::as_bytes) {
        Some(b"1.0") => Origin::Http10,
        Some(b"1.1") => Origin::Http11 { absolute: false },
        Some(b"1.1;absolute") => Origin::Http11 { absolute: true },
        _ => Origin::Http2,
    }
}

/// `namespace/service:port`.
pub fn to_value(service: &ServiceKey, port: u16) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(format!("{service}:{port}"))).ok()
}

pub fn apply(edits: &HeaderEdit, headers: &mut HeaderMap) {
    let pair = |(k, v): &(Arc<str>, Arc<str>)| {
        Some((HeaderName::from_bytes(k.as_bytes()).ok()?, HeaderValue::from_str(v).ok()?))
    };
    for (k, v) in edits.set.iter().filter_map(pair) {
        headers.insert(k, v);
    }
    for (k, v) in edits.add.iter().filter_map(pair) {
        headers.append(k, v);
    }
    for k in &edits.remove {
        headers.remove(&**k);
    }
}

/// A `Host` that names the listener, not a service: loopback names, or none at all.
pub fn names_listener(authority: Option<&Authority>) -> bool {
    let Some(a) = authority else { return true };
    let host = a.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

/// `grpc-timeout`: at most eight digits and a unit.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<std::time::Duration> {
    let v = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = v.split_at_checked(v.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => std::time::Duration::from_secs(n * 3600),
        "M" => std::time::Duration::from_secs(n * 60),
        "S" => std::time::Duration::from_secs(n),
        "m" => std::time::Duration::from_millis(n),
        "u" => std::time::Duration::from_micros(n),
        "n" => std::time::Duration::from_nanos(n),
        _ => return None,
    })
}

/// The remaining time, as a `grpc-timeout`: rounded down, so that the callee gives up first.
pub fn grpc_timeout_value(left: std::time::Duration) -> HeaderValue {
    let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let text = if ms < 100_000_000 { format!("{ms}m") } else { format!("{}S", (ms / 1000).min(99_999_999)) };
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("0m"))
}

/// True when an answer was made by a proxy, with what it says.
pub fn far_failure(
    headers: &HeaderMap,
) -> Option<(Option<weft_snapshot::failure::FailureKind>, weft_snapshot::failure::Sent)> {
    headers.get(FAILURE).map(|v| weft_snapshot::failure::parse_header(v.as_bytes()))
}

/// `Retry-After` in seconds (dates are not honoured).
pub fn retry_after(headers: &HeaderMap) -> Option<std::time::Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(std::time::Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trf_11_reads_grpc_timeouts() {
        let check = |v: &str, want: Option<u64>| {
            let mut h = HeaderMap::new();
            h.insert(GRPC_TIMEOUT, HeaderValue::from_str(v).unwrap());
            assert_eq!(grpc_timeout(&h).map(|d| u64::try_from(d.as_micros()).unwrap()), want, "{v}");
        };
        check("1S", Some(1_000_000));
        check("250m", Some(250_000));
        check("2H", Some(7_200_000_000));
        check("7u", Some(7));
        check("123456789S", None);
        check("S", None);
        check("1", None);
        check("-1S", None);
    }

    #[test]
    fn hops_are_counted_to_the_limit() {
        let mut h = HeaderMap::new();
        for n in 1..=MAX_HOPS {
            assert_eq!(count_hop(&mut h), Some(n));
        }
        assert_eq!(count_hop(&mut h), None);
        h.insert(HOPS, HeaderValue::from_static("x"));
        assert_eq!(count_hop(&mut h), None, "not a number is no licence");
    }

    #[test]
    fn sec_13_strips_what_only_proxies_say_and_nothing_else() {
        let mut h = HeaderMap::new();
        for name in ["weft-to", "weft-anything", "x-forwarded-client-cert", "weftless", "x-weft-to"] {
            h.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        strip(&mut h);
        let mut left: Vec<_> = h.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["weftless", "x-weft-to"]);
    }

    #[test]
    fn ids_are_uuids() {
        let mut dice = Dice::seeded(1);
        let (id, next) = (uuid(&mut dice), uuid(&mut dice));
        assert_ne!(id, next);
        assert_eq!(id[14], b'4');
        assert!(matches!(id[19], b'8' | b'9' | b'a' | b'b'));
        let dashes: Vec<_> = (0..36).filter(|i| !id[*i].is_ascii_hexdigit()).collect();
        assert_eq!(dashes, [8, 13, 18, 23]);
    }
}
