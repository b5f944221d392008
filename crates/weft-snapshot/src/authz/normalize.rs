//! Paths as policies read them and as they are forwarded: the same bytes (features.md SEC-24, BASE).

use std::borrow::Cow;

use crate::request::split_path;

/// Why a path could mean one thing to a policy and another to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    #[error("path has an encoded slash or backslash; send it unencoded, or in the query")]
    EncodedSlash,
    #[error("path has `%` without two hexadecimal digits")]
    BrokenEscape,
    #[error("path has an encoded NUL")]
    EncodedNul,
    #[error("path leaves the root with `..`")]
    AboveRoot,
    #[error("path has a fragment, a control character or a space")]
    Character,
}

/// Unreserved characters decoded, `\` turned into `/`, dot segments resolved; the query is left alone. What cannot be
/// given one meaning is refused. Borrowed when there is nothing to do. Targets that are not paths (`*`) pass.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    normalized(path, EncodedSlash::Refused)
}

/// For workloads none of whose policies reads paths ([`super::InboundView::reads_paths`]): `%2F` stays as it is.
pub fn normalize_keeping_slashes(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    normalized(path, EncodedSlash::Kept)
}

// === helpers ===

#[derive(Clone, Copy, PartialEq)]
enum EncodedSlash {
    Refused,
    Kept,
}

fn normalized(target: &str, slash: EncodedSlash) -> Result<Cow<'_, str>, Ambiguous> {
    if !target.starts_with('/') {
        return Ok(Cow::Borrowed(target));
    }
    let (path, query) = split_path(target);
    if query.starts_with('#') || target.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(Ambiguous::Character);
    }
    if !path.bytes().any(|b| matches!(b, b'%' | b'\\')) && !has_dot_segment(path) {
        return Ok(Cow::Borrowed(target));
    }
    let decoded = decode(path, slash)?;
    let mut out = if has_dot_segment(&decoded) { without_dots(&decoded)? } else { decoded };
    if out == path {
        return Ok(Cow::Borrowed(target));
    }
    out.push_str(query);
    Ok(Cow::Owned(out))
}

fn decode(path: &str, slash: EncodedSlash) -> Result<String, Ambiguous> {
    let mut out = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(if c == '\\' { '/' } else { c });
            continue;
        }
        let mut digit = || chars.next().and_then(|d| d.to_digit(16)).ok_or(Ambiguous::BrokenEscape);
        let (hi, lo) = (digit()?, digit()?);
        let byte = u8::try_from(hi * 16 + lo).unwrap_or_default(); // two digits: fits
        match byte {
            0 => return Err(Ambiguous::EncodedNul),
            b'/' | b'\\' if slash == EncodedSlash::Refused => return Err(Ambiguous::EncodedSlash),
            b if is_unreserved(b) => out.push(char::from(b)),
            b => {
                use std::fmt::Write as _;
                let _ = write!(out, "%{b:02X}"); // to a String: cannot fail
            }
        }
    }
    Ok(out)
}

/// RFC 3986, section 5.2.4, except that going above the root is refused instead of ignored.
fn without_dots(path: &str) -> Result<String, Ambiguous> {
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(s) = segments.next() {
        let last = segments.peek().is_none();
        match s {
            "." if last => out.push(""),
            "." => {}
            ".." => {
                out.pop().ok_or(Ambiguous::AboveRoot)?;
                if last {
                    out.push("");
                }
            }
            s => out.push(s),
        }
    }
    Ok(out.iter().fold(String::with_capacity(path.len()), |joined, s| joined + "/" + s))
}

fn has_dot_segment(path: &str) -> bool {
    path.contains("/.") && path.split('/').any(|s| s == "." || s == "..")
}

/// RFC 3986, section 2.3.
fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sec_24_one_meaning_for_policy_and_application() {
        let check = |path, want: Result<&str, Ambiguous>| {
            assert_eq!(normalize(path).as_deref().map_err(|e| *e), want.as_ref().copied().map_err(|e| *e), "{path}");
        };
        for same in
            ["/", "/a/b", "/a//b", "/a/.b/..c/...", "*", "example.com:443", "/a?x=/../%2F\\", "/a%20b", "/%C3%A4"]
        {
            check(same, Ok(same));
        }
        check("/a/./b", Ok("/a/b"));
        check("/a/../b", Ok("/b"));
        check("/a/b/..", Ok("/a/"));
        check("/a/.", Ok("/a/"));
        check("/a/../?q=..", Ok("/?q=.."));
        check("/a//../b", Ok("/a/b"));
        check("/%61dmin", Ok("/admin"));
        check("/a/%2e%2E/b", Ok("/b"));
        check("/a\\b", Ok("/a/b"));
        check("/a\\..\\b", Ok("/b"));
        check("/a%c3%a4%3f", Ok("/a%C3%A4%3F"));
        check("/a%25%32f", Ok("/a%252f"));
        check("/a%2Fb", Err(Ambiguous::EncodedSlash));
        check("/a%5cb", Err(Ambiguous::EncodedSlash));
        check("/a%00", Err(Ambiguous::EncodedNul));
        check("/a%", Err(Ambiguous::BrokenEscape));
        check("/a%4", Err(Ambiguous::BrokenEscape));
        check("/a%zz", Err(Ambiguous::BrokenEscape));
        check("/..", Err(Ambiguous::AboveRoot));
        check("/a/../../b", Err(Ambiguous::AboveRoot));
        check("/a#b", Err(Ambiguous::Character));
        check("/a b", Err(Ambiguous::Character));
        check("/a?x\r\n", Err(Ambiguous::Character));
        assert_eq!(normalize_keeping_slashes("/g/a%2fb/../c").as_deref(), Ok("/g/c"));
        assert_eq!(normalize_keeping_slashes("/g/a%2fb").as_deref(), Ok("/g/a%2Fb"));
    }

    #[test]
    fn borrows_when_there_is_nothing_to_do() {
        for path in ["/", "/a/b?x", "/a%20b"] {
            assert!(matches!(normalize(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn sec_24_normalising_twice_changes_nothing(path in "/[a./%25eEfF\\\\~]{0,12}") {
            if let Ok(once) = normalize(&path) {
                prop_assert!(once.starts_with('/'));
                prop_assert!(!has_dot_segment(&once) && !once.contains('\\'));
                let twice = normalize(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
            }
        }
    }
}
