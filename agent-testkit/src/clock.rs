//! The time as a server sees it: the machine's clock plus a skew that can be changed while the
//! server runs, to stand for a server whose clock is off or to let minutes pass at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A clock shared by all parts of one server.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    skew_micros: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that is off by `skew`; positive is ahead.
    pub fn skewed(skew: SignedDuration) -> Self {
        let clock = Self::default();
        clock.set_skew(skew);
        clock
    }

    /// The time on this clock.
    pub fn now(&self) -> Timestamp {
        let skew = SignedDuration::from_micros(self.skew_micros.load(Ordering::Relaxed));
        Timestamp::now()
            .checked_add(skew)
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Sets how far this clock is ahead of the machine's.
    pub fn set_skew(&self, skew: SignedDuration) {
        let micros = i64::try_from(skew.as_micros()).unwrap_or(i64::MAX);
        self.skew_micros.store(micros, Ordering::Relaxed);
    }

    /// Moves this clock ahead, as if so much time had passed.
    pub fn advance(&self, by: Duration) {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.skew_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Whether this clock differs from the machine's.
    pub fn is_skewed(&self) -> bool {
        self.skew_micros.load(Ordering::Relaxed) != 0
    }

    /// The time on this clock in the form of an HTTP `Date` header.
    pub fn http_date(&self) -> String {
        self.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }
}

/// Microseconds and a numeric offset, the form in which the Prefect API writes times.
pub fn iso_micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

/// Whole seconds and a `Z`, the form of Kubernetes' `Time`.
pub fn rfc3339_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads a time; one without an offset is UTC.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let civil = text.parse::<DateTime>().ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_with_and_without_an_offset() {
        let utc = parse_time("2023-01-05T10:00:05+00:00").unwrap();
        assert_eq!(parse_time("2023-01-05T10:00:05"), Some(utc));
        assert_eq!(parse_time("2023-01-05T11:00:05.000+01:00"), Some(utc));
        assert_eq!(iso_micros(utc), "2023-01-05T10:00:05.000000+00:00");
        assert_eq!(rfc3339_seconds(utc), "2023-01-05T10:00:05Z");
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn an_advanced_clock_runs_ahead_of_the_machine() {
        let clock = Clock::default();
        clock.advance(Duration::from_secs(3600));
        assert!(clock.is_skewed());
        assert!(clock.now() > Timestamp::now() + SignedDuration::from_mins(59));
    }
}
