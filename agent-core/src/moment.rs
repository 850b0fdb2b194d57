//! A moment from which time is measured.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A moment in this process. Unlike an [`Instant`] it also ages while the machine sleeps.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    instant: Instant,
    wall: SystemTime,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// How long ago it was, or longer: a clock that is set forward makes it older.
    pub fn elapsed(&self) -> Duration {
        let by_wall = self.wall.elapsed().unwrap_or_default();
        self.instant.elapsed().max(by_wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moment_ages_by_either_clock() {
        let hour = Duration::from_secs(3600);
        let mut moment = Moment::now();
        tokio::time::advance(hour).await;
        assert!(moment.elapsed() >= hour);
        moment = Moment::now();
        moment.wall -= hour;
        assert!(moment.elapsed() >= hour, "the machine slept");
        moment = Moment::now();
        moment.wall += hour;
        assert!(moment.elapsed() < hour, "the clock was set back");
    }
}
