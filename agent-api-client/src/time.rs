//! Times as the Prefect API writes and reads them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::{Offset, TimeZone};

/// Reads a time; one without an offset is UTC.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let civil: DateTime = text.parse().ok()?;
        Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

/// Writes a time as Python does: UTC as `+00:00`, microseconds only when there are any.
pub(crate) fn format(time: Timestamp) -> String {
    let micros = time.subsec_nanosecond() / 1000;
    let precision = if micros == 0 { 0 } else { 6 };
    let mut text = String::with_capacity(32);
    // Printing a timestamp to a `String` cannot fail.
    let _ = DateTimePrinter::new()
        .precision(Some(precision))
        .print_timestamp_with_offset(&time, Offset::UTC, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_with_and_without_offset() {
        let utc = parse("2023-01-05T10:00:05+00:00").expect("a time");
        for same in [
            "2023-01-05T10:00:05",
            "2023-01-05 10:00:05",
            "2023-01-05T12:00:05+02:00",
            "2023-01-05T10:00:05Z",
            "2023-01-05T10:00:05.000000+00:00",
        ] {
            assert_eq!(parse(same), Some(utc), "{same}");
        }
        assert_eq!(parse("tomorrow"), None);
    }

    #[test]
    fn writes_times_as_python_does() {
        for text in [
            "2023-01-05T10:00:05+00:00",
            "2023-01-05T10:00:05.120000+00:00",
        ] {
            assert_eq!(format(parse(text).expect("a time")), text);
        }
    }
}
