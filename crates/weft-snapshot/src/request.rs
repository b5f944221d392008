//! What a decision needs to know of an HTTP request, borrowed from whatever codec holds it.

/// Header fields, however the codec stores them. Names are asked for in lower case.
pub trait Headers {
    /// Calls `f` with the value of each field of that name, in order.
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8]));
}

/// The head of a request. `path` is what was received (after [`crate::authz::normalize`] where policies read it), with
/// its query; `host` is the authority, with its port if one was given.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a dyn Headers,
}

// === impl Request ===

impl<'a> Request<'a> {
    /// The path without query and fragment.
    pub fn path_only(&self) -> &'a str {
        split_path(self.path).0
    }

    /// The query without `?`; empty when there is none.
    pub fn query(&self) -> &'a str {
        let rest = split_path(self.path).1;
        let query = rest.strip_prefix('?').unwrap_or("");
        query.split('#').next().unwrap_or(query)
    }

    /// The host without port and trailing dot.
    pub fn host_only(&self) -> &'a str {
        host_only(self.host)
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} at {}", self.method, self.path, self.host)
    }
}

/// For tests and for hypothetical requests.
impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for [(N, V)] {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        for (n, v) in self {
            if n.as_ref().eq_ignore_ascii_case(name) {
                f(v.as_ref());
            }
        }
    }
}

/// As [`Headers`] of a slice; `&vec` coerces where `&vec[..]` would be needed.
impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for Vec<(N, V)> {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        self.as_slice().each(name, f);
    }
}

/// A request without header fields.
impl Headers for () {
    fn each(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
}

/// The path, and everything from `?` or `#` on.
pub(crate) fn split_path(path: &str) -> (&str, &str) {
    let at = path.find(['?', '#']).unwrap_or(path.len());
    path.split_at_checked(at).unwrap_or((path, ""))
}

/// Without port and trailing dot: `a.b.:80` → `a.b`, `[::1]:80` → `[::1]`.
pub(crate) fn host_only(host: &str) -> &str {
    let bare = match host.rsplit_once(':') {
        Some((h, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!h.contains(':') || h.ends_with(']')) => h,
        _ => host,
    };
    bare.strip_suffix('.').unwrap_or(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_target_apart() {
        let check = |path, want_path, want_query| {
            let r = Request { method: "GET", path, host: "", headers: &() };
            assert_eq!((r.path_only(), r.query()), (want_path, want_query), "{path}");
        };
        check("/a/b", "/a/b", "");
        check("/a?x=1&y", "/a", "x=1&y");
        check("/a?x#f", "/a", "x");
        check("/a#f?x", "/a", "");
        check("*", "*", "");
        check("?x", "", "x");
    }

    #[test]
    fn ignores_the_port_of_a_host() {
        for (host, want) in [
            ("a.b", "a.b"),
            ("a.b:80", "a.b"),
            ("a.b.", "a.b"),
            ("a.b.:8080", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("a:b", "a:b"),
            ("a:", "a"),
            ("", ""),
        ] {
            assert_eq!(host_only(host), want, "{host}");
        }
    }
}
