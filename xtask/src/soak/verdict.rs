//! When a quantity counts as growing.

use crate::bench::report::quantile;

/// The share of a soak that is not judged: caches fill, pools open their connections, and the
/// allocator gets to know its peaks.
const WARM_UP: f64 = 0.2;
/// By how much the level at the end may exceed that at the beginning.
const SHARE: f64 = 0.05;

/// A quantity before and after.
#[derive(Debug, PartialEq)]
pub(super) struct Levels {
    /// The median of the first third after the warm-up.
    pub(super) first: f64,
    /// The median of the last third.
    pub(super) last: f64,
    /// The highest level that the last may be.
    pub(super) bound: f64,
}

impl Levels {
    /// Of samples that were taken at equal distances; medians, so that single peaks mean nothing.
    /// `slack` is what the quantity may grow by, however small it is.
    pub(super) fn of(samples: &[f64], slack: f64) -> Self {
        let judged = &samples[(samples.len() as f64 * WARM_UP) as usize..];
        let third = judged.len() / 3;
        let median = |part: &[f64]| quantile(&mut part.to_vec(), 0.5);
        let first = median(&judged[..third]);
        Self {
            first,
            last: median(&judged[judged.len() - third..]),
            bound: first * (1.0 + SHARE) + slack,
        }
    }

    pub(super) fn grew(&self) -> bool {
        self.last > self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half an hour of samples around 20, each up to `noise` off, with `more` added.
    fn samples(noise: f64, more: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut sample = |n| 20.0 + noise * (2.0 * random.f64() - 1.0) + more(n);
        (0..1_800).map(&mut sample).collect()
    }

    #[test]
    fn a_level_that_only_trembles_does_not_grow() {
        assert!(!Levels::of(&samples(3.0, |_| 0.0), 0.0).grew());
    }

    #[test]
    fn a_slow_leak_grows() {
        // A tenth in the whole time, within noise of three tenths.
        let leak = |n: usize| 2.0 * n as f64 / 1_800.0;
        let levels = Levels::of(&samples(3.0, leak), 0.0);
        assert!(levels.grew(), "{levels:?}");
    }

    #[test]
    fn what_comes_in_the_warm_up_is_no_growth() {
        let filling = |n: usize| 20.0 * (n.min(300) as f64 / 300.0);
        assert!(!Levels::of(&samples(3.0, filling), 0.0).grew());
    }

    #[test]
    fn single_peaks_are_no_growth() {
        let peaks = |n: usize| {
            if n > 1_200 && n.is_multiple_of(5) {
                50.0
            } else {
                0.0
            }
        };
        assert!(!Levels::of(&samples(1.0, peaks), 0.0).grew());
    }

    #[test]
    fn a_step_late_in_the_soak_grows_unless_it_is_within_the_slack() {
        let step = |n: usize| if n > 1_000 { 3.0 } else { 0.0 };
        assert!(Levels::of(&samples(1.0, step), 0.0).grew());
        assert!(!Levels::of(&samples(1.0, step), 4.0).grew());
    }

    #[test]
    fn without_samples_nothing_grows() {
        assert!(!Levels::of(&[], 0.0).grew());
        assert!(!Levels::of(&[1.0, 2.0], 0.0).grew());
    }
}
