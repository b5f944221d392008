//! String and address patterns of policies.

use std::net::IpAddr;

use crate::fragment::{IpBlock, StringMatch};

pub(crate) fn matches(pattern: &StringMatch, value: &[u8]) -> bool {
    match pattern {
        StringMatch::Exact(s) => value == s.as_bytes(),
        StringMatch::Prefix(s) => value.starts_with(s.as_bytes()),
        StringMatch::Suffix(s) => value.ends_with(s.as_bytes()),
        StringMatch::Present => !value.is_empty(),
        StringMatch::Template(t) => matches_template(t, value),
    }
}

/// Hosts compare without regard to case.
pub(crate) fn matches_host(pattern: &StringMatch, value: &[u8]) -> bool {
    let head = |n: usize| value.get(..n);
    let tail = |n: usize| value.len().checked_sub(n).and_then(|at| value.get(at..));
    let same = |part: Option<&[u8]>, s: &str| part.is_some_and(|p| p.eq_ignore_ascii_case(s.as_bytes()));
    match pattern {
        StringMatch::Exact(s) => value.eq_ignore_ascii_case(s.as_bytes()),
        StringMatch::Prefix(s) => same(head(s.len()), s),
        StringMatch::Suffix(s) => same(tail(s.len()), s),
        StringMatch::Present => !value.is_empty(),
        StringMatch::Template(_) => false, // refused when compiled
    }
}

pub(crate) fn contains(block: &IpBlock, ip: IpAddr) -> bool {
    match (block.addr, ip.to_canonical()) {
        (IpAddr::V4(b), IpAddr::V4(ip)) => {
            let shift = 32_u32.saturating_sub(block.prefix.into());
            (b.to_bits() ^ ip.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(b), IpAddr::V6(ip)) => {
            let shift = 128_u32.saturating_sub(block.prefix.into());
            (b.to_bits() ^ ip.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}

pub(crate) fn is_valid_block(block: &IpBlock) -> bool {
    block.prefix <= if block.addr.is_ipv4() { 32 } else { 128 }
}

/// `{*}` stands for one whole segment; `{**}` for what lies between its slashes, and only as the last operator.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    let bad = |why| Err(format!("path template `{template}`: {why}"));
    if !template.starts_with('/') {
        return bad("does not begin with `/`");
    }
    let mut rest = false;
    for segment in template.split('/') {
        match segment {
            "{*}" | "{**}" if rest => return bad("has an operator after `{**}`"),
            "{**}" => rest = true,
            "{*}" => {}
            s if s.contains(['{', '}', '*']) => return bad("has an operator that is not a whole segment"),
            _ => {}
        }
    }
    Ok(())
}

fn matches_template(template: &str, path: &[u8]) -> bool {
    let mut segments = path.split(|b| *b == b'/');
    let mut pattern = template.split('/');
    while let Some(want) = pattern.next() {
        if want == "{**}" {
            return ends_with_segments(pattern, segments);
        }
        let Some(segment) = segments.next() else { return false };
        let holds = if want == "{*}" { !segment.is_empty() } else { want.as_bytes() == segment };
        if !holds {
            return false;
        }
    }
    segments.next().is_none()
}

/// After `{**}`, which took at least one (maybe empty) segment: the pattern's remaining segments, from the end.
fn ends_with_segments<'a>(
    pattern: impl DoubleEndedIterator<Item = &'a str>,
    mut segments: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> bool {
    pattern.rev().all(|want| segments.next_back() == Some(want.as_bytes())) && segments.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_20_strings_match_exactly_by_prefix_by_suffix_or_by_presence() {
        let check =
            |m: StringMatch, value: &str, want| assert_eq!(matches(&m, value.as_bytes()), want, "{m:?} {value}");
        check(StringMatch::Exact("abc".into()), "abc", true);
        check(StringMatch::Exact("abc".into()), "abcd", false);
        check(StringMatch::Exact("abc".into()), "ABC", false);
        check(StringMatch::Prefix("abc".into()), "abcd", true);
        check(StringMatch::Prefix("abc".into()), "ab", false);
        check(StringMatch::Suffix("abc".into()), "xabc", true);
        check(StringMatch::Suffix("abc".into()), "bc", false);
        check(StringMatch::Present, "x", true);
        check(StringMatch::Present, "", false);
    }

    #[test]
    fn sec_20_path_templates() {
        let check = |t: &str, path: &str, want| {
            check_template(t).unwrap();
            assert_eq!(matches(&StringMatch::Template(t.into()), path.as_bytes()), want, "{t} {path}");
        };
        check("/foo/{*}", "/foo/bar", true);
        check("/foo/{*}", "/foo/", false);
        check("/foo/{*}", "/foo", false);
        check("/foo/{*}", "/foo/bar/baz", false);
        check("/foo/{*}/baz", "/foo/bar/baz", true);
        check("/foo/{*}/baz", "/foo/bar/bar", false);
        check("/{*}/{*}", "/a/b", true);
        check("/{*}/{*}", "/a", false);
        check("/foo/{**}", "/foo/", true);
        check("/foo/{**}", "/foo/a/b/c", true);
        check("/foo/{**}", "/foo", false);
        check("/foo/{**}/bar", "/foo/a/b/bar", true);
        check("/foo/{**}/bar", "/foo//bar", true);
        check("/foo/{**}/bar", "/foo/bar", false);
        check("/foo/{**}/bar", "/foo/a/b/baz", false);
        check("/{*}/x/{**}", "/a/x/y/z", true);
        check("/{**}", "/", true);
        check("/plain", "/plain", true);
        for bad in ["foo", "/{**}/{*}", "/{**}/{**}", "/a{*}", "/{x}", "/a*", "/{"] {
            assert!(check_template(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sec_18_address_blocks() {
        let check = |addr: &str, prefix, ip: &str, want| {
            let block = IpBlock { addr: addr.parse().unwrap(), prefix };
            assert_eq!(contains(&block, ip.parse().unwrap()), want, "{addr}/{prefix} {ip}");
        };
        check("10.0.0.0", 8, "10.255.0.1", true);
        check("10.0.0.0", 8, "11.0.0.1", false);
        check("10.1.2.3", 8, "10.9.9.9", true);
        check("10.0.0.1", 32, "10.0.0.1", true);
        check("10.0.0.1", 32, "10.0.0.2", false);
        check("0.0.0.0", 0, "1.2.3.4", true);
        check("0.0.0.0", 0, "::1", false);
        check("10.0.0.0", 8, "::ffff:10.0.0.1", true);
        check("fd00::", 8, "fd12::1", true);
        check("fd00::", 8, "fe80::1", false);
        check("::", 0, "fe80::1", true);
        check("::1", 128, "::1", true);
    }
}
