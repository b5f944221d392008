//! How long a request may take, as callers say it and as it is passed on (features.md TRF-11).

use std::time::Duration;

/// Digits of a `grpc-timeout` (gRPC over HTTP/2).
const MAX_DIGITS: usize = 8;

/// The value of `grpc-timeout`: up to eight digits and a unit.
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n.saturating_mul(3600)),
        b'M' => Duration::from_secs(n.saturating_mul(60)),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The same for what is left of a deadline: never longer than it, in the finest unit that eight digits can hold.
pub fn format_grpc_timeout(left: Duration) -> String {
    let units: [(u128, char); 6] = [
        (1, 'n'),
        (1000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
        (3_600_000_000_000, 'H'),
    ];
    let fits = |(nanos, unit): (u128, char)| {
        let n = left.as_nanos() / nanos;
        (n < 100_000_000).then(|| format!("{n}{unit}"))
    };
    units.into_iter().find_map(fits).unwrap_or_else(|| "99999999H".into())
}

/// The stricter of what the route says and what the caller says.
pub fn stricter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn trf_11_reads_grpc_timeouts() {
        let check = |value: &str, want| assert_eq!(parse_grpc_timeout(value.as_bytes()), want, "{value}");
        check("1S", Some(Duration::from_secs(1)));
        check("250m", Some(Duration::from_millis(250)));
        check("10u", Some(Duration::from_micros(10)));
        check("99999999n", Some(Duration::from_nanos(99_999_999)));
        check("2M", Some(Duration::from_secs(120)));
        check("1H", Some(Duration::from_secs(3600)));
        check("0n", Some(Duration::ZERO));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", "1 S", "+1S"] {
            check(bad, None);
        }
    }

    #[test]
    fn trf_11_the_stricter_wins() {
        let s = |n| Some(Duration::from_secs(n));
        assert_eq!((stricter(s(1), s(2)), stricter(None, s(2)), stricter(s(1), None)), (s(1), s(2), s(1)));
        assert_eq!(stricter(None, None), None);
    }

    proptest! {
        #[test]
        fn trf_11_what_is_left_is_passed_on_without_growing(nanos in prop_oneof![0..2_000_000_000_u64, any::<u64>()]) {
            let left = Duration::from_nanos(nanos);
            let text = format_grpc_timeout(left);
            let read = parse_grpc_timeout(text.as_bytes()).unwrap();
            prop_assert!(read <= left && left - read <= left / 99_999 + Duration::from_nanos(1), "{text}");
        }
    }
}
