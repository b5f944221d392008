//! What is wrong with a document: every violation at once, each with its place, its field path and what to try next.

use std::{fmt, sync::Arc};

/// Where something stands in what was typed: a field path and, where the source was text, a line and a column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spot {
    /// `spec.rules[0].matches[1].path.value`; empty for the document itself.
    pub path: Arc<str>,
    /// From 1; 0 where the document was not read from text.
    pub line: u32,
    pub column: u32,
}

/// Why a violation is one, for whoever must answer with a code or a Gateway API reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Not YAML or JSON.
    Malformed,
    UnknownKind,
    UnknownField,
    Missing,
    /// Of the wrong type, or a value that is not allowed.
    Invalid,
    /// Means something, but this build cannot do it: `Accepted=False` with `UnsupportedValue` where status is all we have.
    Unsupported,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub reason: Reason,
    /// `<stdin>`, a file name, or empty.
    pub file: Arc<str>,
    pub spot: Spot,
    pub message: String,
}

/// All that is wrong with one document (or one stream of them), in the order of the text. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

/// Collects violations and warnings while a document is read.
#[derive(Debug)]
pub(crate) struct Sink {
    file: Arc<str>,
    violations: Vec<Violation>,
    warnings: Vec<Violation>,
}

// === impl Spot ===

impl Spot {
    pub(crate) fn new(path: impl Into<Arc<str>>, line: u32, column: u32) -> Self {
        Self { path: path.into(), line, column }
    }

    /// The path of a field of this.
    pub(crate) fn field(&self, name: &str) -> Arc<str> {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path).into() }
    }

    /// A field of this that is not there: it is reported where its parent stands.
    pub(crate) fn absent(&self, name: &str) -> Self {
        Self::new(self.field(name), self.line, self.column)
    }
}

// === impl Violations ===

impl Violations {
    pub fn one(violation: Violation) -> Self {
        Self(vec![violation])
    }

    /// `None` when there is nothing wrong.
    pub fn from_vec(mut violations: Vec<Violation>) -> Option<Self> {
        // Stable: what has no line (read back from the store) keeps the order in which it was found.
        violations.sort_by_key(|v| (v.spot.line, v.spot.column));
        (!violations.is_empty()).then_some(Self(violations))
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Violation> {
        self.0.iter()
    }

    pub fn into_vec(self) -> Vec<Violation> {
        self.0
    }

    /// Whether all of it would be right if this build could do more.
    pub fn only_unsupported(&self) -> bool {
        self.0.iter().all(|v| v.reason == Reason::Unsupported)
    }
}

impl IntoIterator for Violations {
    type Item = Violation;
    type IntoIter = std::vec::IntoIter<Violation>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl std::error::Error for Violations {}

/// One line each.
impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            violation.fmt(f)?;
        }
        Ok(())
    }
}

/// `shop.yaml:12:9: spec.rules[0].name: …`; what is unknown is left out.
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spot { line, column, .. } = self.spot;
        match (self.file.is_empty(), line, column) {
            (true, 0, _) => {}
            (false, 0, _) => write!(f, "{}: ", self.file)?,
            (true, _, 0) => write!(f, "line {line}: ")?,
            (false, _, 0) => write!(f, "{}:{line}: ", self.file)?,
            (true, _, _) => write!(f, "line {line}, column {column}: ")?,
            (false, _, _) => write!(f, "{}:{line}:{column}: ", self.file)?,
        }
        if !self.spot.path.is_empty() {
            write!(f, "{}: ", self.spot.path)?;
        }
        f.write_str(&self.message)
    }
}

// === impl Sink ===

impl Sink {
    pub(crate) fn new(file: Arc<str>) -> Self {
        Self { file, violations: Vec::new(), warnings: Vec::new() }
    }

    pub(crate) fn refuse(&mut self, spot: &Spot, reason: Reason, message: impl Into<String>) {
        let violation = self.violation(spot, reason, message.into());
        self.violations.push(violation);
    }

    pub(crate) fn invalid(&mut self, spot: &Spot, message: impl Into<String>) {
        self.refuse(spot, Reason::Invalid, message);
    }

    pub(crate) fn unsupported(&mut self, spot: &Spot, message: impl Into<String>) {
        self.refuse(spot, Reason::Unsupported, message);
    }

    /// Whether something was said already of this or of a part of it.
    pub(crate) fn refused(&self, spot: &Spot) -> bool {
        let part = |path: &str| {
            path.strip_prefix(&*spot.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        spot.path.is_empty() && !self.violations.is_empty() || self.violations.iter().any(|v| part(&v.spot.path))
    }

    /// A field that is not there; one that is there and wrong was told of already.
    pub(crate) fn missing(&mut self, spot: &Spot, name: &str, message: impl Into<String>) {
        let absent = spot.absent(name);
        if !self.refused(&absent) {
            self.refuse(&absent, Reason::Missing, message);
        }
    }

    pub(crate) fn warn(&mut self, spot: &Spot, message: impl Into<String>) {
        let violation = self.violation(spot, Reason::Unsupported, message.into());
        self.warnings.push(violation);
    }

    /// The value with its warnings, unless something was wrong. A value without violations is always there.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<Violation>), Violations> {
        let Self { file, violations, warnings } = self;
        match (Violations::from_vec(violations), value) {
            (None, Some(value)) => Ok((value, warnings)),
            (Some(violations), _) => Err(violations),
            (None, None) => Err(Violations::one(Violation {
                reason: Reason::Invalid,
                file,
                spot: Spot::default(),
                message: "the document could not be understood; please report this, it is a mistake of ours".into(),
            })),
        }
    }

    fn violation(&self, spot: &Spot, reason: Reason, message: String) -> Violation {
        Violation { reason, file: self.file.clone(), spot: spot.clone(), message }
    }
}

// === suggestions ===

/// The candidate that was probably meant: equal but for case, at most a third of its letters away, or with what was
/// typed as a part of it.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let low = typed.to_lowercase();
    let near = candidates
        .clone()
        .into_iter()
        .map(|c| (distance(&low, &c.to_lowercase()), c))
        .filter(|(d, c)| *d <= (c.chars().count().max(typed.chars().count()) / 3).max(1))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c);
    let partly = |c: &&str| low.len() >= 3 && c.to_lowercase().contains(&low);
    near.filter(|_| !typed.is_empty()).or_else(|| candidates.into_iter().find(partly))
}

/// How many letters are to be inserted, left out, replaced, or swapped with their neighbour. What is typed may be
/// anything, so only its beginning counts.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    let letters = |s: &str| s.chars().take(LONGEST).collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let previous = i.checked_sub(1).and_then(|i| a.get(i));
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&last, j) + usize::from(ca != cb)).min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = j.checked_sub(1).filter(|k| previous == Some(cb) && b.get(*k) == Some(ca));
            if let Some(k) = swapped {
                best = best.min(at(&before, k) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        let check = |a, b, want| assert_eq!(distance(a, b), want, "{a} {b}");
        check("", "", 0);
        check("abc", "", 3);
        check("", "abc", 3);
        check("kitten", "sitting", 3);
        check("httproute", "httproutes", 1);
        check("form", "from", 1);
        check("ca", "abc", 3);
    }

    #[test]
    fn suggests_what_is_near_and_nothing_else() {
        let fields = ["matches", "filters", "backendRefs", "timeouts"];
        let check = |typed, want| assert_eq!(nearest(typed, fields), want, "{typed}");
        check("matchs", Some("matches"));
        check("backendrefs", Some("backendRefs"));
        check("backends", Some("backendRefs"));
        check("outs", Some("timeouts"));
        check("zzz", None);
        check("", None);
    }
}
