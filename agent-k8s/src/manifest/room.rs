//! Room in memory: what is built at the same time, together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What room is counted in, in bytes.
const UNIT: usize = 1 << 10;
/// What has at most so many bytes goes past what is large, which may take long.
const SMALL: usize = 512 << 10;
/// How many bytes small things have together.
const ALL_SMALL: usize = 8 << 20;
/// How many bytes large things have together; what would have more is alone.
pub(super) const ALL_LARGE: usize = 24 << 20;

/// Room for things of all sizes. Small ones wait for small ones only.
pub(super) struct Room {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// Room that was taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken(Option<OwnedSemaphorePermit>);

impl Room {
    pub(super) fn new() -> Self {
        Self {
            small: Arc::new(Semaphore::new(ALL_SMALL / UNIT)),
            large: Arc::new(Semaphore::new(ALL_LARGE / UNIT)),
        }
    }

    /// Waits until there is room for so many bytes. Who has room must not wait for more of the same.
    pub(super) async fn take(&self, bytes: usize) -> Taken {
        let among = if bytes <= SMALL {
            &self.small
        } else {
            &self.large
        };
        let taken = among.clone().acquire_many_owned(units(bytes)).await;
        // Nobody closes the semaphores.
        Taken(taken.ok())
    }
}

impl Taken {
    /// Gives back what is more than so many bytes.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if let Some(taken) = &mut self.0 {
            let excess = taken.num_permits().saturating_sub(units(bytes) as usize);
            drop(taken.split(excess));
        }
    }
}

fn units(bytes: usize) -> u32 {
    let units = bytes.min(ALL_LARGE).div_ceil(UNIT).max(1);
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn large_things_wait_for_each_other_and_small_ones_do_not_wait_for_them() {
        let room = Room::new();
        let mut first = room.take(usize::MAX).await;
        let mut second = Box::pin(room.take(ALL_LARGE / 2));
        assert!((&mut second).now_or_never().is_none());
        assert!(room.take(10_000).now_or_never().is_some());
        first.shrink(ALL_LARGE / 2);
        assert!((&mut second).now_or_never().is_some());
    }

    #[tokio::test]
    async fn small_things_have_bounds_together() {
        let room = Room::new();
        let mut taken = Vec::new();
        while let Some(one) = room.take(SMALL).now_or_never() {
            taken.push(one);
        }
        assert_eq!(taken.len() * SMALL, ALL_SMALL);
        drop(taken.pop());
        assert!(room.take(SMALL).now_or_never().is_some());
    }
}
