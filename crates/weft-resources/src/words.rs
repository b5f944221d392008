//! The small values that several kinds share: names, ports, durations, patterns, headers.

use std::{net::IpAddr, sync::Arc, time::Duration};

use weft_model::{Name, Selector, Wall};
use weft_snapshot::fragment::{IpBlock, StringMatch};

use crate::{
    schema::{At, Entries},
    violation::{Sink, Spot},
};

pub(crate) fn name(at: &At<String>, out: &mut Sink) -> Option<Name> {
    match Name::parse(&at.value) {
        Ok(name) if !at.value.contains('/') => Some(name),
        Ok(_) => {
            out.invalid(&at.spot, format!("`{}` is not a name: it contains `/`", at.value));
            None
        }
        Err(error) => {
            out.invalid(&at.spot, error.to_string());
            None
        }
    }
}

/// A service account: it becomes a segment of a SPIFFE ID.
pub(crate) fn account(at: &At<String>, out: &mut Sink) -> Option<Name> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !at.value.bytes().all(allowed) {
        let message = format!("`{}` cannot be part of a SPIFFE ID; allowed are a-z A-Z 0-9 . - _", at.value);
        out.invalid(&at.spot, message);
        return None;
    }
    name(at, out)
}

pub(crate) fn port(at: &At<i64>, out: &mut Sink) -> Option<u16> {
    let port = u16::try_from(at.value).ok().filter(|p| *p > 0);
    if port.is_none() {
        out.invalid(&at.spot, format!("port {} is not between 1 and 65535", at.value));
    }
    port
}

/// A port written as text, as Istio's policies do.
pub(crate) fn port_text(at: &At<String>, out: &mut Sink) -> Option<u16> {
    let port = at.value.parse().ok().filter(|p: &u16| *p > 0);
    if port.is_none() {
        out.invalid(&at.spot, format!("`{}` is not a port between 1 and 65535", at.value));
    }
    port
}

pub(crate) fn selector(entries: &Entries<String>, out: &mut Sink) -> Selector {
    for (key, at) in entries.0.iter().filter(|(k, v)| k.is_empty() || v.value.contains('*')) {
        let message =
            if key.is_empty() { "a label needs a name" } else { "labels are compared exactly; `*` is no pattern" };
        out.invalid(&at.spot, message);
    }
    Selector(entries.0.iter().map(|(k, v)| (k.as_str().into(), v.value.as_str().into())).collect())
}

/// GEP-2257: `1h30m`, `500ms`; up to four parts of up to five digits. Zero means no limit.
pub(crate) fn duration(at: &At<String>, out: &mut Sink) -> Option<Duration> {
    let parsed = parse_duration(&at.value);
    if parsed.is_none() {
        let message = format!("`{}` is not a duration such as `500ms`, `10s` or `1m30s`", at.value);
        out.invalid(&at.spot, message);
    }
    parsed
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let number: u64 = number.parse().ok().filter(|_| digits <= 5)?;
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = after;
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

/// RFC 3339 at whatever precision; kept to the millisecond.
pub(crate) fn timestamp(text: &str) -> Option<Wall> {
    let (date, time) = text.split_once(['T', 't'])?;
    let (y, m, d) = three(date, '-')?;
    let at = time.find(['Z', 'z', '+']).or_else(|| time.rfind('-'))?;
    let (clock, zone) = time.split_at_checked(at)?;
    let offset = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, hm) => {
            let (h, m) = hm.split_once(':')?;
            let minutes = h.parse::<i64>().ok()? * 60 + m.parse::<i64>().ok()?;
            if sign == "-" { -minutes } else { minutes }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (h, min, s) = three(clock, ':')?;
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let in_range = (1..=12).contains(&m)
        && (1..=31).contains(&d)
        && (0..24).contains(&h)
        && (0..60).contains(&min)
        && (0..=60).contains(&s)
        && (0..=9999).contains(&y);
    let secs = ((days(y, m, d) * 24 + h) * 60 + min - offset) * 60 + s;
    in_range.then(|| Wall::millis(secs * 1000 + millis))
}

fn three(text: &str, separator: char) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(separator).map(|p| p.parse::<i64>().ok());
    let found = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(found)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (eras of 400 years that begin in March).
fn days(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
    let doy = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Istio's patterns: `abc`, `abc*`, `*abc`, `*` (anything that is not empty).
pub(crate) fn pattern(at: &At<String>, out: &mut Sink) -> Option<StringMatch> {
    let text = at.value.as_str();
    let (matched, literal) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text.is_empty() => {
            out.invalid(&at.spot, "is empty; `*` means anything that is there");
            return None;
        }
        (Some(""), _) => (StringMatch::Present, ""),
        (Some(suffix), _) => (StringMatch::Suffix(suffix.into()), suffix),
        (None, Some(prefix)) => (StringMatch::Prefix(prefix.into()), prefix),
        (None, None) => (StringMatch::Exact(text.into()), text),
    };
    if literal.contains('*') {
        let message = format!("`{text}` is no pattern: `*` may stand at the beginning or at the end, once");
        out.invalid(&at.spot, message);
        return None;
    }
    Some(matched)
}

pub(crate) fn ip_block(at: &At<String>, out: &mut Sink) -> Option<IpBlock> {
    let parsed = parse_block(&at.value);
    if parsed.is_none() {
        out.invalid(&at.spot, format!("`{}` is not an address or block such as `10.1.0.0/16`", at.value));
    }
    parsed
}

fn parse_block(text: &str) -> Option<IpBlock> {
    let (addr, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let addr: IpAddr = addr.parse().ok()?;
    let longest = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(longest), |p| p.parse().ok())?;
    (prefix <= longest).then_some(IpBlock { addr, prefix })
}

/// A header's name, in lower case.
pub(crate) fn header_name(at: &At<String>, out: &mut Sink) -> Option<Arc<str>> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if at.value.is_empty() || at.value.len() > 256 || !at.value.bytes().all(token) {
        out.invalid(&at.spot, format!("`{}` is not a header name", at.value.escape_debug()));
        return None;
    }
    Some(at.value.to_ascii_lowercase().into())
}

pub(crate) fn header_value(at: &At<String>, out: &mut Sink) -> Option<Arc<str>> {
    if at.value.len() > 4096 || at.value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        out.invalid(&at.spot, "is not a header value: too long, or it has control characters");
        return None;
    }
    Some(at.value.as_str().into())
}

/// RE2 syntax, compiled once here so that no proxy ever meets a broken one.
pub(crate) fn regex(at: &At<String>, out: &mut Sink) -> Option<Arc<str>> {
    /// Bounds what one operator's pattern costs every proxy.
    const SIZE_LIMIT: usize = 1 << 18;
    let build = |pattern: &str| regex::RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).build();
    // as it stands too, so that parentheses which do not pair cannot leave the group
    let built = build(&at.value).and_then(|_| build(&format!(r"\A(?:{})\z", at.value)));
    match built {
        Ok(_) => Some(at.value.as_str().into()),
        Err(regex::Error::CompiledTooBig(_)) => {
            out.invalid(&at.spot, "regular expression is too large; write less repetition");
            None
        }
        Err(error) => {
            // the last line holds the reason, those before it draw the place
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            out.invalid(&at.spot, format!("`{}` is not a regular expression: {reason}", at.value));
            None
        }
    }
}

/// At most so many, as the schema of the dialect says.
pub(crate) fn at_most<T>(items: &[T], most: usize, spot: &Spot, out: &mut Sink) {
    if items.len() > most {
        out.invalid(spot, format!("has {} entries, at most {most} are allowed", items.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trf_11_durations_are_gep_2257() {
        let check = |text, want: Option<u64>| {
            assert_eq!(parse_duration(text), want.map(Duration::from_millis), "{text}");
        };
        check("0s", Some(0));
        check("10s", Some(10_000));
        check("1h30m", Some(5_400_000));
        check("1m30s500ms", Some(90_500));
        for bad in ["", "10", "s", "1.5s", "-1s", "1d", "100000s", "1s1s1s1s1s", "1S", " 1s"] {
            check(bad, None);
        }
    }

    #[test]
    fn timestamps_are_read_as_they_are_written() {
        for ms in [0, 951_782_400_000, 1_790_158_777_250, 4_102_444_799_999] {
            assert_eq!(timestamp(&Wall::millis(ms).rfc3339()), Some(Wall::millis(ms)));
        }
        assert_eq!(timestamp("1970-01-01T01:00:00+01:00"), Some(Wall::EPOCH));
        assert_eq!(timestamp("1969-12-31T23:30:00-00:30"), Some(Wall::EPOCH));
        assert_eq!(timestamp("1970-01-01T00:00:00.5Z"), Some(Wall::millis(500)));
        for bad in ["", "1970-01-01", "1970-01-01T00:00:00", "1970-13-01T00:00:00Z", "1970-01-01T24:00:00Z", "xTyZ"] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }

    #[test]
    fn sec_20_patterns() {
        let check = |text: &str, want| {
            let at = At { spot: Spot::default(), value: text.to_string() };
            assert_eq!(pattern(&at, &mut Sink::new("".into())), want, "{text}");
        };
        check("abc", Some(StringMatch::Exact("abc".into())));
        check("abc*", Some(StringMatch::Prefix("abc".into())));
        check("*abc", Some(StringMatch::Suffix("abc".into())));
        check("*", Some(StringMatch::Present));
        for bad in ["", "a*c", "*a*", "**"] {
            check(bad, None);
        }
    }

    #[test]
    fn blocks() {
        assert_eq!(parse_block("10.1.0.0/16"), Some(IpBlock { addr: "10.1.0.0".parse().unwrap(), prefix: 16 }));
        assert_eq!(parse_block("::1"), Some(IpBlock { addr: "::1".parse().unwrap(), prefix: 128 }));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "x/8", "1.2.3.4/", "1.2.3.4/8/8"] {
            assert_eq!(parse_block(bad), None, "{bad}");
        }
    }
}
