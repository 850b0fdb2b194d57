//! The limit on unfinished jobs: further runs stay in the queue until there is room.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::observation::{JobState, Observation};
use crate::{FlowRun, FlowRunId};

/// How long a job that was made is counted before it is seen: a watch shows it within moments, and
/// when it never does the job is gone already.
const UNSEEN: Duration = Duration::from_secs(60);

/// Jobs that are unfinished, or about to be made.
#[derive(Debug)]
pub(super) struct InFlight {
    limit: Option<usize>,
    counted: Mutex<Counted>,
    /// Marked whenever there may be more room.
    room: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Counted {
    /// All jobs that exist have been seen.
    complete: bool,
    unfinished: HashSet<String>,
    /// The runs that wait for room, by when they are due.
    waiting: BTreeSet<(Timestamp, FlowRunId)>,
    reserved: HashMap<FlowRunId, Reserved>,
}

/// A place that a run has taken before its job was seen.
#[derive(Debug)]
enum Reserved {
    /// Its job is not known to be made yet; these jobs of the run have been seen meanwhile.
    Making(Vec<String>),
    /// Its job was made, at this time.
    Made(String, Instant),
}

impl InFlight {
    pub(super) fn new(limit: Option<usize>) -> Self {
        if let Some(limit) = limit {
            metrics::gauge!("prefect_agent_max_in_flight").set(limit as f64);
        }
        Self {
            limit,
            counted: Mutex::default(),
            room: watch::Sender::default(),
        }
    }

    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Jobs are watched from now on by somebody who has seen none of them.
    pub(super) fn begin(&self) {
        let mut counted = self.lock();
        counted.complete = false;
        counted.unfinished.clear();
        counted.show();
    }

    /// Notes what was seen of a job.
    pub(super) fn saw(&self, seen: &Observation) {
        let mut counted = self.lock();
        if seen.own && seen.state == JobState::Active {
            if !counted.unfinished.contains(&seen.job) {
                counted.unfinished.insert(seen.job.clone());
            }
        } else {
            counted.unfinished.remove(&seen.job);
        }
        match counted.reserved.get_mut(&seen.flow_run_id) {
            Some(Reserved::Making(jobs)) if !jobs.contains(&seen.job) => {
                jobs.push(seen.job.clone());
            }
            Some(Reserved::Made(job, _)) if *job == seen.job => {
                counted.reserved.remove(&seen.flow_run_id);
            }
            _ => {}
        }
        counted.show();
        drop(counted);
        self.room.send_replace(());
    }

    /// Notes that all jobs that exist have been seen.
    pub(super) fn complete(&self) {
        self.lock().complete = true;
        self.room.send_replace(());
    }

    /// Jobs that count towards the limit.
    pub(super) fn count(&self) -> usize {
        self.lock().count()
    }

    /// Joins those that wait for room; whoever is due first is served first.
    pub(super) fn line_up(self: &Arc<Self>, run: &FlowRun) -> Ticket {
        let ticket = Ticket {
            key: (run.due.unwrap_or(Timestamp::MIN), run.id.clone()),
            in_flight: self.clone(),
        };
        if self.limit.is_some() {
            self.lock().waiting.insert(ticket.key.clone());
        }
        ticket
    }

    /// Takes a place for a run that is claimed already, whether there is room or not.
    pub(super) fn enter_now(self: &Arc<Self>, run: &FlowRunId) -> Place {
        if self.limit.is_some() {
            let mut counted = self.lock();
            counted
                .reserved
                .insert(run.clone(), Reserved::Making(Vec::new()));
            counted.show();
        }
        self.place(run)
    }

    fn place(self: &Arc<Self>, run: &FlowRunId) -> Place {
        Place {
            run: run.clone(),
            in_flight: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn count(&mut self) -> usize {
        self.reserved.retain(|_, reserved| match reserved {
            Reserved::Making(_) => true,
            Reserved::Made(_, at) => at.elapsed() < UNSEEN,
        });
        self.unfinished.len() + self.reserved.len()
    }

    fn show(&mut self) {
        metrics::gauge!("prefect_agent_in_flight").set(self.count() as f64);
    }

    fn next_forgotten(&self) -> Option<Instant> {
        let made = self
            .reserved
            .values()
            .filter_map(|reserved| match reserved {
                Reserved::Making(_) => None,
                Reserved::Made(_, at) => Some(*at + UNSEEN),
            });
        made.min()
    }
}

/// A run's place among those that wait for room.
#[derive(Debug)]
pub(super) struct Ticket {
    key: (Timestamp, FlowRunId),
    in_flight: Arc<InFlight>,
}

impl Ticket {
    /// Waits for room and takes it.
    pub(super) async fn enter(self) -> Place {
        if let Some(limit) = self.in_flight.limit {
            let mut room = self.in_flight.room.subscribe();
            while let Err(forgotten) = self.reserve(limit) {
                match forgotten {
                    Some(at) => _ = timeout_at(at, room.changed()).await,
                    // The sender lives in `self`, so this cannot fail.
                    None => _ = room.changed().await,
                }
            }
        }
        self.in_flight.place(&self.key.1)
    }

    /// Takes a place if there is one and nobody waits who is due earlier; else when one will be
    /// forgotten, if any.
    fn reserve(&self, limit: usize) -> Result<(), Option<Instant>> {
        let mut counted = self.in_flight.lock();
        let first = counted.waiting.first() == Some(&self.key);
        let taken = counted.count();
        if first && counted.complete && taken < limit {
            let reserved = Reserved::Making(Vec::new());
            counted.reserved.insert(self.key.1.clone(), reserved);
            counted.show();
            return Ok(());
        }
        Err(counted.next_forgotten())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.in_flight.limit.is_some() {
            self.in_flight.lock().waiting.remove(&self.key);
            self.in_flight.room.send_replace(());
        }
    }
}

/// A place for one job; free again when dropped, unless the job was made.
#[derive(Debug)]
pub(super) struct Place {
    run: FlowRunId,
    in_flight: Arc<InFlight>,
}

impl Place {
    /// The job was made: it keeps the place until it is seen, and from then on counts by itself.
    pub(super) fn made(self, job: &str) {
        let mut counted = self.in_flight.lock();
        if let Some(reserved) = counted.reserved.get_mut(&self.run)
            && matches!(reserved, Reserved::Making(seen) if !seen.iter().any(|name| name == job))
        {
            *reserved = Reserved::Made(job.to_owned(), Instant::now());
        }
        drop(counted);
        // From now on there is a time at which the place is free again.
        self.in_flight.room.send_replace(());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counted = self.in_flight.lock();
        if let Some(Reserved::Making(_)) = counted.reserved.get(&self.run) {
            counted.reserved.remove(&self.run);
            counted.show();
            drop(counted);
            self.in_flight.room.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Work;

    fn seen(job: &str, run: &str, state: JobState) -> Observation {
        Observation {
            job: job.to_owned(),
            flow_run_id: run.into(),
            state,
            own: true,
            created_at: None,
            ended_at: None,
            kept: false,
            findings: Vec::new(),
        }
    }

    fn run(id: &str) -> FlowRun {
        FlowRun::new(id, id, Work::Flow(Box::default()))
    }

    /// Whether there is room at once; takes it for a moment.
    async fn has_room(in_flight: &Arc<InFlight>) -> bool {
        let entering = in_flight.line_up(&run("asks")).enter();
        tokio::time::timeout(Duration::ZERO, entering).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_taken_from_the_claim_to_the_end_of_the_job() {
        let in_flight = Arc::new(InFlight::new(Some(1)));
        assert!(!has_room(&in_flight).await, "nothing is known yet");
        in_flight.complete();
        assert!(has_room(&in_flight).await);
        let place = in_flight.line_up(&run("run")).enter().await;
        assert!(!has_room(&in_flight).await, "reserved");
        place.made("job");
        assert!(!has_room(&in_flight).await, "made but not seen");
        in_flight.saw(&seen("job", "run", JobState::Active));
        assert_eq!(in_flight.count(), 1);
        in_flight.saw(&seen("job", "run", JobState::Succeeded));
        assert!(has_room(&in_flight).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_has_ended_before_its_maker_knows_of_it_takes_no_place() {
        let in_flight = Arc::new(InFlight::new(Some(1)));
        in_flight.complete();
        let place = in_flight.line_up(&run("run")).enter().await;
        in_flight.saw(&seen("job", "run", JobState::Active));
        in_flight.saw(&seen("job", "run", JobState::Failed));
        place.made("job");
        assert!(has_room(&in_flight).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_never_seen_is_forgotten_and_one_that_is_not_made_at_once() {
        let in_flight = Arc::new(InFlight::new(Some(1)));
        in_flight.complete();
        drop(in_flight.line_up(&run("lost")).enter().await);
        in_flight.line_up(&run("run")).enter().await.made("job");
        let waited = Instant::now();
        in_flight.line_up(&run("next")).enter().await.made("other");
        assert!(waited.elapsed() >= UNSEEN - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_due_first_is_served_first() {
        let in_flight = Arc::new(InFlight::new(Some(1)));
        let due = |second| Some(Timestamp::from_second(second).expect("a time"));
        let [late, early] = [20, 10].map(|second| FlowRun {
            due: due(second),
            ..run(&second.to_string())
        });
        let late = in_flight.line_up(&late);
        let early = in_flight.line_up(&early);
        in_flight.complete();
        let mut late = std::pin::pin!(late.enter());
        assert!(
            futures::poll!(&mut late).is_pending(),
            "another is due earlier"
        );
        let place = early.enter().await;
        assert!(futures::poll!(&mut late).is_pending(), "no room");
        drop(place);
        late.await;
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_of_other_agents_take_no_place() {
        let in_flight = Arc::new(InFlight::new(Some(1)));
        in_flight.complete();
        let mut foreign = seen("job", "run", JobState::Active);
        foreign.own = false;
        in_flight.saw(&foreign);
        assert!(has_room(&in_flight).await);
    }
}
