//! How far the API's clock is ahead of this machine's, as far as its answers can be believed.

use std::collections::VecDeque;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use reqwest::header::{self, HeaderMap};

/// Clocks that differ by less are taken as equal: the API tells its time in whole seconds.
const SKEW: SignedDuration = SignedDuration::from_secs(2);
/// A clock that differs by more is not followed: one of the two is wrong, and a run that starts at
/// a wrong time does more harm than one that starts by the clock of the machine that starts it.
const MOST_FOLLOWED: SignedDuration = SignedDuration::from_mins(5);
/// So many readings are kept; the one in the middle counts, so that two that are wrong move nothing.
const READINGS: usize = 5;
/// How often a clock that is not followed is told of, in seconds.
const REMINDER: SignedDuration = SignedDuration::from_hours(1);

/// The API's clock.
#[derive(Debug, Default)]
pub(crate) struct ApiClock {
    /// How far each of the last answers was ahead.
    readings: VecDeque<SignedDuration>,
    stand: Stand,
    reminded: Option<Timestamp>,
}

/// What is made of the API's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stand {
    /// It is about equal to this machine's.
    #[default]
    Equal,
    /// It differs, and is followed.
    Followed(SignedDuration),
    /// It differs by so much that it is not followed.
    Ignored,
}

/// What a person should know of the two clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// They agree again.
    Agree,
    /// They differ, and the API's is followed.
    Follows(SignedDuration),
    /// They differ by more than can be, and this machine's is followed.
    Ignores {
        /// The API's time.
        theirs: Timestamp,
        /// This machine's.
        ours: Timestamp,
    },
}

impl ApiClock {
    /// How far the API's clock is ahead; zero when about equal, or when it is not followed.
    pub(crate) fn ahead(&self) -> SignedDuration {
        match self.stand {
            Stand::Followed(ahead) => ahead,
            Stand::Equal | Stand::Ignored => SignedDuration::ZERO,
        }
    }

    /// How far the API's clock is ahead, followed or not; zero when about equal.
    pub(crate) fn differs(&self) -> SignedDuration {
        match self.stand {
            Stand::Equal => SignedDuration::ZERO,
            Stand::Followed(_) | Stand::Ignored => self.middle(),
        }
    }

    /// Notes that an answer was dated `theirs` when it arrived at `ours`; tells what a person
    /// should know, once for each change.
    pub(crate) fn note(&mut self, theirs: Timestamp, ours: Timestamp) -> Option<Notice> {
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back(theirs.duration_since(ours));
        let ahead = self.middle();
        let stand = match ahead.abs() {
            difference if difference < SKEW => Stand::Equal,
            difference if difference <= MOST_FOLLOWED => Stand::Followed(ahead),
            _ => Stand::Ignored,
        };
        let before = std::mem::replace(&mut self.stand, stand);
        let same = std::mem::discriminant(&before) == std::mem::discriminant(&stand);
        match stand {
            Stand::Equal => (!same).then_some(Notice::Agree),
            Stand::Followed(ahead) => (!same).then_some(Notice::Follows(ahead)),
            Stand::Ignored => {
                let lately = |at: Timestamp| ours.duration_since(at).abs() < REMINDER;
                if self.reminded.is_some_and(lately) {
                    return None;
                }
                self.reminded = Some(ours);
                let theirs = ours.saturating_add(ahead).unwrap_or(theirs);
                Some(Notice::Ignores { theirs, ours })
            }
        }
    }

    /// The reading in the middle; of two in the middle, the one that moves less. The first one
    /// waits for a second that bears it out.
    fn middle(&self) -> SignedDuration {
        let mut sorted: Vec<_> = self.readings.iter().copied().collect();
        if sorted.len() == 1 {
            sorted.push(SignedDuration::ZERO);
        }
        sorted.sort_unstable();
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        let (lower, upper) = (sorted[lower], sorted[upper]);
        if lower.abs() <= upper.abs() {
            lower
        } else {
            upper
        }
    }
}

/// When an answer says that it was made. The header cuts off the fraction of the second: on
/// average half a second.
pub(crate) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    let whole = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    whole.saturating_add(SignedDuration::from_millis(500)).ok()
}

impl Notice {
    /// Logs it for the API at this address.
    pub(crate) fn log(&self, api: &str) {
        match self {
            Self::Agree => tracing::info!("{self}"),
            Self::Follows(_) | Self::Ignores { .. } => tracing::warn!("{self} (the API at {api})"),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agree => f.write_str("The clocks of the API and of this machine agree again"),
            Self::Follows(ahead) => write!(
                f,
                "The clock of the API is {:.1} s {} this machine's; start times follow the API's",
                ahead.abs().as_secs_f64(),
                if ahead.is_positive() {
                    "ahead of"
                } else {
                    "behind"
                },
            ),
            Self::Ignores { theirs, ours } => write!(
                f,
                "The API says that it is {theirs:.0}, by this machine's clock it is {ours:.0}: clocks that differ by more than {} minutes are not followed, so start times follow this machine's; set both clocks by NTP",
                MOST_FOLLOWED.as_mins(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_750_000_000 + second).expect("a time")
    }

    /// The clock after answers that were ahead by so many seconds, and what was told.
    fn after(readings: &[i64]) -> (i64, Vec<Notice>) {
        let mut clock = ApiClock::default();
        let told = readings.iter().zip(0..).filter_map(|(ahead, now)| {
            let ours = at(now);
            clock.note(ours + SignedDuration::from_secs(*ahead), ours)
        });
        let told = told.collect();
        (clock.ahead().as_secs(), told)
    }

    #[test]
    fn a_clock_that_differs_is_followed_and_told_of_once() {
        let ahead = SignedDuration::from_secs(90);
        assert_eq!(after(&[90; 9]), (90, vec![Notice::Follows(ahead)]));
        let back = [90, 90, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            after(&back),
            (0, vec![Notice::Follows(ahead), Notice::Agree])
        );
        assert_eq!(after(&[1, 1, 0, 1, -1]), (0, vec![]));
    }

    #[test]
    fn an_absurd_answer_moves_nothing() {
        let year = 365 * 86_400;
        assert_eq!(after(&[200]).0, 0, "the first one waits for a second");
        for absurd in [year, -year, 250, -250, -1_750_000_000] {
            for nth in 0..9 {
                let mut readings = [10; 9];
                readings[nth] = absurd;
                let (ahead, told) = after(&readings);
                assert_eq!(ahead, 10, "{absurd} at {nth}");
                assert_eq!(told.len(), 1, "{told:?}");
                let mut readings = [0; 9];
                readings[nth] = absurd;
                assert_eq!(after(&readings), (0, vec![]), "{absurd} at {nth}");
            }
        }
    }

    #[test]
    fn a_clock_that_cannot_be_is_not_followed_and_both_times_are_told() {
        for ahead in [301, -301, 365 * 86_400, -1_700_000_000] {
            let (followed, told) = after(&[ahead; 50]);
            assert_eq!(followed, 0, "{ahead}");
            let [Notice::Ignores { theirs, ours }] = told[..] else {
                panic!("{told:?}")
            };
            assert_eq!(theirs.duration_since(ours).as_secs(), ahead);
            let told = told[0].to_string();
            assert!(told.contains("2025-06-15T15:06:41Z"), "{told}");
        }
    }

    #[test]
    fn dates_are_read_as_http_writes_them() {
        let headers = |date: &str| {
            HeaderMap::from_iter([(header::DATE, date.parse().expect("a header's value"))])
        };
        let date_of = |text: &str| date(&headers(text)).map(|date| date.as_millisecond());
        assert_eq!(date_of("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1_500));
        assert_eq!(date_of("soon"), None);
        assert_eq!(date(&HeaderMap::new()), None);
    }
}
