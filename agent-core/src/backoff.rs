//! Pauses between attempts: exponential, with jitter, never in step with other agents.

use std::time::Duration;

/// Pauses that double from `first` up to `max`; each is shortened by a random part of up to half.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Pauses from `first` up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// The next pause; at least `floor`, which is what the other side asked for.
    pub fn pause(&mut self, floor: Option<Duration>) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.max);
        pause.max(floor.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_and_respects_the_floor() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for (low, high) in [(50, 100), (100, 200), (150, 300), (150, 300)] {
            let pause = backoff.pause(None).as_millis();
            assert!(
                (low..=high).contains(&pause),
                "{pause} not in {low}..={high}"
            );
        }
        let floor = Duration::from_secs(7);
        assert_eq!(backoff.pause(Some(floor)), floor);
    }
}
