//! What will happen, drawn from a seed: which runs there are, what becomes of their pods, and which
//! blows fall when.

use std::time::Duration;

use agent_testkit::Course;

use super::poison::Bad;

/// For how long blows fall.
const STORM: Duration = Duration::from_secs(14);

/// Tells the seed of bad runs from the seed of all else, which stays as it is without them.
const POISON: u64 = 0x5EED_BAD0;

/// How a run has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Success,
    Failed,
}

/// One run.
pub(super) struct Run {
    /// When it is due, from the beginning.
    pub(super) due: Duration,
    pub(super) course: Course,
    pub(super) end: End,
}

/// Something bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGKILL, and a new process after this time.
    Kill { back: Duration },
    /// SIGTERM, and a new process when the old one has ended.
    Stop,
    /// SIGSTOP, and SIGCONT after this time.
    Freeze { thaw: Duration },
    /// All watches end.
    CutWatches,
    /// All watches are told that they are too far behind.
    ExpireWatches,
    /// The API takes runs that were submitted for lost and schedules them again.
    Lazarus,
    /// The Prefect server restarts, and has forgotten who submitted what when.
    Restart { back: Duration },
    /// The Prefect API, or the Kubernetes API, is not there for a while.
    Outage { prefect: bool, back: Duration },
}

/// Something bad at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blow {
    pub(super) at: Duration,
    pub(super) replica: usize,
    pub(super) kind: Kind,
}

/// Everything that is drawn.
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) runs: Vec<Run>,
    /// Runs with which something is wrong, beside them.
    pub(super) bad: Vec<Bad>,
    pub(super) blows: Vec<Blow>,
    /// The share of requests that go wrong, on either side, for each kind of fault.
    pub(super) faults: f64,
}

impl Plan {
    /// Draws a plan.
    pub(super) fn draw(seed: u64, runs: usize, replicas: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let runs = (0..runs).map(|_| run(&mut random)).collect();
        let mut blows: Vec<Blow> = (0..random.usize(8..16))
            .map(|_| Blow {
                at: millis(&mut random, 500, STORM.as_millis() as u64),
                replica: random.usize(0..replicas),
                kind: kind(&mut random),
            })
            .collect();
        blows.sort_by_key(|blow| blow.at);
        Self {
            seed,
            runs,
            bad: Vec::new(),
            blows,
            faults: random.f64() * 0.02,
        }
    }

    /// Adds bad runs, so that they are this share of all.
    pub(super) fn poison(mut self, share: f64) -> Self {
        let mut random = fastrand::Rng::with_seed(self.seed ^ POISON);
        let count = (self.runs.len() as f64 * share / (1.0 - share)).ceil() as usize;
        self.bad = (0..count).map(|_| Bad::draw(&mut random)).collect();
        self
    }

    /// When the last blow falls.
    pub(super) fn storm_ends(&self) -> Duration {
        self.blows.last().map_or(Duration::ZERO, |blow| blow.at)
    }
}

fn millis(random: &mut fastrand::Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.u64(from..to))
}

fn run(random: &mut fastrand::Rng) -> Run {
    let due = millis(random, 0, 9_000);
    let after = millis(random, 0, 2_500);
    let (course, end) = match random.u8(0..10) {
        0..5 => (Course::succeeds_after(after), End::Success),
        5 => (Course::image_pull_recovers("timeout", after), End::Success),
        6 => (Course::exits_with(3, after), End::Failed),
        7 => (Course::oom_killed(after), End::Failed),
        8 => (Course::image_pull_failure("manifest unknown"), End::Failed),
        _ => (Course::killed_by(9, after), End::Failed),
    };
    Run { due, course, end }
}

fn kind(random: &mut fastrand::Rng) -> Kind {
    match random.u8(0..13) {
        0..5 => Kind::Kill {
            back: millis(random, 0, 2_000),
        },
        5 => Kind::Stop,
        6 | 7 => Kind::Freeze {
            thaw: millis(random, 200, 5_000),
        },
        8 => Kind::CutWatches,
        9 => Kind::ExpireWatches,
        10 => Kind::Lazarus,
        11 => Kind::Restart {
            back: millis(random, 2_500, 4_000),
        },
        _ => Kind::Outage {
            prefect: random.bool(),
            back: millis(random, 200, 3_000),
        },
    }
}
