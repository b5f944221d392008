//! Does a rule match a request?

use super::view::{HttpRuleView, KeyView, MatchView, PathView, ValueView};
use crate::request::{Headers, Request};

/// Which alternative of the rule holds; 0 for a rule that matches everything.
pub(super) fn rule(rule: &HttpRuleView, request: &Request<'_>) -> Option<u16> {
    if !rule.hosts.is_empty() {
        let host = request.host_only();
        if !rule.hosts.iter().any(|pattern| host_matches(pattern, host)) {
            return None;
        }
    }
    if rule.matches.is_empty() {
        return Some(0);
    }
    (0..).zip(&rule.matches).find(|(_, m)| matches(m, request)).map(|(i, _)| i)
}

/// `pattern` is in lower case; `*.a` stands for any number of labels, at least one.
fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern.eq_ignore_ascii_case(host),
        Some("") => true,
        Some(suffix) => host
            .len()
            .checked_sub(suffix.len())
            .and_then(|at| host.as_bytes().get(at..).filter(|_| at > 0))
            .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix.as_bytes())),
    }
}

/// All parts must hold; the cheap ones are asked first.
fn matches(m: &MatchView, request: &Request<'_>) -> bool {
    m.method.as_ref().is_none_or(|want| **want == *request.method)
        && m.path.as_ref().is_none_or(|want| path_matches(want, request.path_only()))
        && m.headers.iter().all(|h| header_matches(h, request.headers))
        && m.query.iter().all(|q| query_matches(q, request.query()))
}

fn path_matches(want: &PathView, path: &str) -> bool {
    match want {
        PathView::Exact(p) => **p == *path,
        PathView::ElementPrefix(p) => {
            path.strip_prefix(&**p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathView::Regex(r) => r.is_match(path.as_bytes()),
    }
}

/// Several fields of one name: it is enough that one matches, or their join by commas (RFC 9110, section 5.3).
fn header_matches(want: &KeyView, headers: &dyn Headers) -> bool {
    let mut found = false;
    let mut fields = 0_u32;
    headers.each(&want.key, &mut |value| {
        fields += 1;
        found = found || value_matches(&want.value, value);
    });
    found || fields > 1 && value_matches(&want.value, &joined(&want.key, headers))
}

#[cold]
fn joined(name: &str, headers: &dyn Headers) -> Vec<u8> {
    let mut values = Vec::new();
    headers.each(name, &mut |v| values.push(v.to_vec()));
    values.join(&b","[..])
}

/// The first parameter of the name counts (Gateway API's advice); values compare decoded.
fn query_matches(want: &KeyView, query: &str) -> bool {
    let mut pairs = query.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
    pairs.find(|(k, _)| decoded(k).eq(want.key.bytes())).is_some_and(|(_, value)| match &want.value {
        ValueView::Present => true,
        ValueView::Exact(v) => decoded(value).eq(v.bytes()),
        ValueView::Regex(r) if value.contains(['%', '+']) => r.is_match(&decoded(value).collect::<Vec<_>>()),
        ValueView::Regex(r) => r.is_match(value.as_bytes()),
    })
}

fn value_matches(want: &ValueView, value: &[u8]) -> bool {
    match want {
        ValueView::Present => true,
        ValueView::Exact(v) => v.as_bytes() == value,
        ValueView::Regex(r) => r.is_match(value),
    }
}

/// `+` and `%xx` of a query; a broken escape stands for itself.
fn decoded(s: &str) -> impl Iterator<Item = u8> {
    let mut rest = s.as_bytes();
    std::iter::from_fn(move || {
        let (&b, tail) = rest.split_first()?;
        rest = tail;
        match (b, tail) {
            (b'+', _) => Some(b' '),
            (b'%', [hi, lo, after @ ..]) => match (hex(*hi), hex(*lo)) {
                (Some(hi), Some(lo)) => {
                    rest = after;
                    Some(hi << 4 | lo)
                }
                _ => Some(b'%'),
            },
            _ => Some(b),
        }
    })
}

fn hex(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok())
}
