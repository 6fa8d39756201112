//! How long a caller waits: the `grpc-timeout` of its call.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Longest number that the header may hold.
const MAX_DIGITS: usize = 8;

/// How long the caller waits from now on; `None` if it does not say, or says it in a way that nobody understands.
#[must_use]
pub fn time_left(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

fn parse(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > MAX_DIGITS || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sets_is_read_back() {
        for time in [Duration::from_nanos(7), Duration::from_millis(1500), Duration::from_secs(3600)] {
            let mut request = tonic::Request::new(());
            request.set_timeout(time);
            assert_eq!(time_left(request.metadata()), Some(time));
        }
        assert_eq!(time_left(&MetadataMap::new()), None);
    }

    #[test]
    fn every_unit_counts_and_nothing_else_does() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("99999999M"), Some(Duration::from_secs(99_999_999 * 60)));
        assert_eq!(parse("0u"), Some(Duration::ZERO));
        for wrong in ["", "S", "1", "1s", "+1S", "-1S", "1.5S", "100000000S", "1 S", "1\u{b5}"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
