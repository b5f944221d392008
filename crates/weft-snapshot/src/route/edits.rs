//! What a route changes in a request and in its response, as a value that the codec applies (features.md TRF-05, TRF-06).

use super::view::{BackendView, HttpRuleView, PathView};
use crate::{
    fragment::{HeaderEdit, PathRewrite},
    request::split_path,
};

/// The rule's edits come before the backend's; each in the order set, add, remove. A rewrite of the backend replaces
/// the rule's.
#[derive(Debug, Clone, Default)]
pub struct Edits<'t> {
    /// The new `Host`, or `:authority`.
    pub host: Option<&'t str>,
    /// The new target, query included; `None` when it stays.
    pub path: Option<String>,
    request: [&'t [HeaderEdit]; 2],
    response: [&'t [HeaderEdit]; 2],
}

impl<'t> Edits<'t> {
    pub fn is_empty(&self) -> bool {
        self.host.is_none()
            && self.path.is_none()
            && self.request().next().is_none()
            && self.response().next().is_none()
    }

    /// Edits of the request's header, in the order to apply them.
    pub fn request(&self) -> impl Iterator<Item = &'t HeaderEdit> + use<'t> {
        self.request.into_iter().flatten()
    }

    /// Edits of the response's header, in the order to apply them.
    pub fn response(&self) -> impl Iterator<Item = &'t HeaderEdit> + use<'t> {
        self.response.into_iter().flatten()
    }
}

pub(super) fn plan<'t>(rule: &'t HttpRuleView, alternative: u16, backend: &'t BackendView, path: &str) -> Edits<'t> {
    let (r, b) = (&rule.edits, &backend.edits);
    let prefix = match rule.matches.get(usize::from(alternative)).and_then(|m| m.path.as_ref()) {
        Some(PathView::ElementPrefix(p)) => p,
        _ => "",
    };
    Edits {
        host: b.host.as_deref().or(r.host.as_deref()),
        path: b.path.as_ref().or(r.path.as_ref()).map(|rewrite| rewritten(rewrite, prefix, path)),
        request: [&r.request, &b.request],
        response: [&r.response, &b.response],
    }
}

/// `prefix` is without trailing slash, and `target` begins with it. The query is kept.
fn rewritten(rewrite: &PathRewrite, prefix: &str, target: &str) -> String {
    let (path, query) = split_path(target);
    let new = match rewrite {
        PathRewrite::Full(full) => full.to_string(),
        PathRewrite::Prefix(new) => {
            let rest = path.strip_prefix(prefix).unwrap_or(path);
            // `/foo` → `/` must make `/baz` of `/foo/baz`, not `//baz`
            format!("{}{rest}", new.strip_suffix('/').unwrap_or(new))
        }
    };
    let slash = if new.starts_with('/') { "" } else { "/" };
    format!("{slash}{new}{query}")
}
