//! Which rules can match a path at all, by its first segment: so that a table of thousands costs what is near.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::view::{HttpRuleView, PathView};

/// Below that, asking every rule is as quick.
const WORTH_IT: usize = 16;

/// Both lists hold places in the table, ascending, and a rule stands either in `anywhere` or under its segments.
#[derive(Debug)]
pub(super) struct Index {
    by_segment: HashMap<Box<str>, Vec<usize>>,
    /// Rules that do not say how a path begins.
    anywhere: Vec<usize>,
}

impl Index {
    pub fn build(rules: &[Arc<HttpRuleView>]) -> Option<Self> {
        if rules.len() < WORTH_IT {
            return None;
        }
        let mut index = Self { by_segment: HashMap::new(), anywhere: Vec::new() };
        for (at, rule) in rules.iter().enumerate() {
            let begins: Option<BTreeSet<&str>> = rule.matches.iter().map(|m| begins_with(m.path.as_ref()?)).collect();
            match begins.filter(|b| !b.is_empty()) {
                None => index.anywhere.push(at),
                Some(segments) => {
                    for segment in segments {
                        index.by_segment.entry(segment.into()).or_default().push(at);
                    }
                }
            }
        }
        Some(index)
    }

    /// In the table's order: a superset of the rules that match.
    pub fn candidates(&self, path: &str) -> impl Iterator<Item = usize> + use<'_> {
        let near = first_segment(path).and_then(|s| self.by_segment.get(s)).map_or(&[][..], Vec::as_slice);
        let (mut near, mut anywhere) = (near.iter().copied().peekable(), self.anywhere.iter().copied().peekable());
        std::iter::from_fn(move || match (near.peek(), anywhere.peek()) {
            (Some(n), Some(a)) if a < n => anywhere.next(),
            (Some(_), _) => near.next(),
            (None, _) => anywhere.next(),
        })
    }
}

/// The first segment of every path that matches, where there is one.
fn begins_with(path: &PathView) -> Option<&str> {
    match path {
        PathView::Exact(p) | PathView::ElementPrefix(p) => first_segment(p),
        PathView::Regex(_) => None,
    }
}

fn first_segment(path: &str) -> Option<&str> {
    path.strip_prefix('/').and_then(|rest| rest.split('/').next())
}
