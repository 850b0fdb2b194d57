//! How many deployments go on at the same time: as many as allowed while both sides keep up, fewer
//! when one of them is overloaded.

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Complaints that come together count once.
const ONE_COMPLAINT: Duration = Duration::from_secs(1);
/// How long a request for one run keeps its slot from others: a webhook or a template server that
/// takes its time holds up that run alone.
const MAX_SLOT_HOLD: Duration = Duration::from_millis(500);
/// Slow requests and repeated ones that may go on besides: as a multiple of the slots, and at least.
const SLOW_LANE_FACTOR: usize = 4;
const MIN_SLOW_LANE: usize = 64;

/// Slots for deployments. Their number is halved when a side complains, and grows by one each time
/// all of them were used without a complaint.
#[derive(Debug)]
pub(super) struct Slots {
    semaphore: Semaphore,
    /// Places for requests that are slow, and for those of runs that have failed before: neither
    /// takes a slot from a run that gets on.
    slow_lane: Semaphore,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many there are to be.
    wanted: usize,
    /// How many of those in use are to vanish when they are given back.
    surplus: usize,
    /// Deployments without a complaint since the number changed.
    smooth: usize,
    complaint: Option<Instant>,
}

impl Slots {
    /// So many slots at most.
    pub(super) fn new(most: usize) -> Self {
        metrics::gauge!("prefect_agent_concurrency").set(most as f64);
        Self {
            semaphore: Semaphore::new(most),
            slow_lane: Semaphore::new((most * SLOW_LANE_FACTOR).max(MIN_SLOW_LANE)),
            most,
            state: Mutex::new(State {
                wanted: most,
                surplus: 0,
                smooth: 0,
                complaint: None,
            }),
        }
    }

    /// Waits for a slot; first come, first served.
    pub(super) async fn acquire(&self) -> Option<Slot<'_>> {
        let permit = self.semaphore.acquire().await.ok()?;
        Some(Slot {
            slots: self,
            permit: Some(permit),
        })
    }

    /// Completes a request for one run in its slot, which goes back to others when that takes long;
    /// or, without a slot, beside the slots.
    pub(super) async fn run<T>(
        &self,
        slot: &mut Option<Slot<'_>>,
        request: impl Future<Output = T>,
    ) -> T {
        // The semaphore is never closed.
        if slot.is_none() {
            let _place = self.slow_lane.acquire().await;
            return request.await;
        }
        let mut request = pin!(request);
        if let Ok(done) = timeout(MAX_SLOT_HOLD, &mut request).await {
            return done;
        }
        tokio::select! {
            done = &mut request => done,
            _place = self.slow_lane.acquire() => {
                *slot = None;
                request.await
            }
        }
    }

    /// A side is overloaded, slow or away.
    pub(super) fn complain(&self) {
        let mut state = self.lock();
        let recent = |at: Instant| at.elapsed() < ONE_COMPLAINT;
        if state.complaint.is_some_and(recent) {
            return;
        }
        state.complaint = Some(Instant::now());
        state.smooth = 0;
        let fewer = (state.wanted / 2).max(1);
        let vanish = state.wanted - fewer;
        state.surplus += vanish - self.semaphore.forget_permits(vanish);
        self.set(&mut state, fewer);
    }

    /// A deployment went well.
    pub(super) fn succeed(&self) {
        let mut state = self.lock();
        if state.wanted == self.most {
            return;
        }
        state.smooth += 1;
        if state.smooth < state.wanted {
            return;
        }
        state.smooth = 0;
        if state.surplus > 0 {
            state.surplus -= 1;
        } else {
            self.semaphore.add_permits(1);
        }
        let more = state.wanted + 1;
        self.set(&mut state, more);
    }

    fn set(&self, state: &mut State, wanted: usize) {
        state.wanted = wanted;
        metrics::gauge!("prefect_agent_concurrency").set(wanted as f64);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot in use; free again when dropped.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    permit: Option<SemaphorePermit<'a>>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        if state.surplus > 0 {
            state.surplus -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many slots can be had at once.
    async fn free(slots: &Slots) -> usize {
        let mut taken = Vec::new();
        while let Ok(slot) = tokio::time::timeout(Duration::ZERO, slots.acquire()).await {
            taken.push(slot);
        }
        taken.len()
    }

    #[tokio::test(start_paused = true)]
    async fn complaints_halve_the_slots_and_success_brings_them_back() {
        let slots = Slots::new(8);
        let in_use = slots.acquire().await;
        slots.complain();
        slots.complain();
        assert_eq!(free(&slots).await, 3, "complaints at the same time are one");
        tokio::time::advance(ONE_COMPLAINT).await;
        slots.complain();
        assert_eq!(free(&slots).await, 1);
        for _ in 0..5 {
            tokio::time::advance(ONE_COMPLAINT).await;
            slots.complain();
        }
        assert_eq!(free(&slots).await, 0, "one is left, and that is in use");
        drop(in_use);
        assert_eq!(free(&slots).await, 1);
        slots.succeed();
        assert_eq!(free(&slots).await, 2);
        for _ in 0..100 {
            slots.succeed();
        }
        assert_eq!(free(&slots).await, 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_gives_its_slot_back_and_a_repeated_one_takes_none() {
        let slots = Slots::new(1);
        let mut slot = slots.acquire().await;
        let mut slow = pin!(slots.run(&mut slot, std::future::pending::<()>()));
        assert!(timeout(MAX_SLOT_HOLD / 2, &mut slow).await.is_err());
        assert_eq!(free(&slots).await, 0);
        assert!(timeout(MAX_SLOT_HOLD, &mut slow).await.is_err());
        assert_eq!(free(&slots).await, 1);
        let taken = slots.acquire().await;
        assert_eq!(slots.run(&mut None, async { 7 }).await, 7);
        drop(taken);
    }

    #[tokio::test(start_paused = true)]
    async fn slots_in_use_vanish_when_they_are_given_back() {
        let slots = Slots::new(4);
        let all = [slots.acquire().await, slots.acquire().await];
        let rest = [slots.acquire().await, slots.acquire().await];
        slots.complain();
        assert_eq!(free(&slots).await, 0);
        drop(all);
        assert_eq!(free(&slots).await, 0);
        drop(rest);
        assert_eq!(free(&slots).await, 2);
    }
}
