//! Prometheus' text format, and OpenMetrics where it is asked for.

use std::fmt::Write as _;

use super::catalogue::{Bounds, Desc, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Prometheus,
    OpenMetrics,
}

/// One number, as precise as it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Whole(u64),
    Real(f64),
}

impl Format {
    /// What an `Accept` header asks for.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(a) if a.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl From<u64> for Number {
    fn from(n: u64) -> Self {
        Self::Whole(n)
    }
}

impl From<f64> for Number {
    fn from(n: f64) -> Self {
        Self::Real(n)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(n) => write!(f, "{n}"),
            Self::Real(n) => write!(f, "{n}"),
        }
    }
}

// writing to a String cannot fail

pub(super) fn header(out: &mut String, d: &Desc, format: Format) {
    let (mut name, mut kind) = (d.name, d.kind.name());
    if format == Format::OpenMetrics && d.kind == Kind::Counter {
        match d.name.strip_suffix("_total") {
            Some(family) => name = family,
            // OpenMetrics knows no counter without that suffix
            None => kind = "unknown",
        }
    }
    let _ = write!(out, "# HELP {name} ");
    escape(out, d.help, false);
    let _ = writeln!(out, "\n# TYPE {name} {kind}");
}

pub(super) fn sample(out: &mut String, d: &Desc, values: &[impl AsRef<str>], number: Number) {
    out.push_str(d.name);
    labels(out, d, values, None);
    let _ = writeln!(out, " {number}");
}

/// `buckets`: how many fell into each of the fine bounds, and beyond the last.
pub(super) fn histogram(
    out: &mut String,
    d: &Desc,
    bounds: &Bounds,
    values: &[impl AsRef<str>],
    buckets: &[u64],
    sum: u64,
) {
    let mut shown = bounds.shown.iter();
    let mut next = shown.next();
    let mut total = 0;
    for (i, n) in buckets.iter().enumerate() {
        total += n;
        let fine = bounds.fine.get(i);
        if fine.is_some() && fine == next {
            let le = next.map_or(String::new(), |at| in_units(*at, bounds.per_unit));
            let _ = write!(out, "{}_bucket", d.name);
            labels(out, d, values, Some(&le));
            let _ = writeln!(out, " {total}");
            next = shown.next();
        }
    }
    let _ = write!(out, "{}_bucket", d.name);
    labels(out, d, values, Some("+Inf"));
    let _ = write!(out, " {total}\n{}_sum", d.name);
    labels(out, d, values, None);
    let _ = write!(out, " {}\n{}_count", in_units(sum, bounds.per_unit), d.name);
    labels(out, d, values, None);
    let _ = writeln!(out, " {total}");
}

/// Exact in decimal, for units of powers of ten.
fn in_units(ticks: u64, per_unit: u64) -> String {
    let (whole, rest) = (ticks / per_unit.max(1), ticks % per_unit.max(1));
    if rest == 0 {
        return whole.to_string();
    }
    let digits = per_unit.ilog10() as usize;
    format!("{whole}.{rest:0digits$}").trim_end_matches('0').into()
}

fn labels(out: &mut String, d: &Desc, values: &[impl AsRef<str>], le: Option<&str>) {
    if d.labels.is_empty() && le.is_none() {
        return;
    }
    let mut separator = '{';
    for (label, value) in d.labels.iter().zip(values) {
        out.push(separator);
        separator = ',';
        out.push_str(label.name());
        out.push_str("=\"");
        escape(out, value.as_ref(), true);
        out.push('"');
    }
    if let Some(le) = le {
        let _ = write!(out, "{separator}le=\"{le}\"");
    }
    out.push('}');
}

fn escape(out: &mut String, text: &str, quoted: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quoted => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}
