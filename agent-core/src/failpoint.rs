//! Places at which tests let the process die, to see that nothing is lost or done twice.
//!
//! The variable `PREFECT_AGENT_FAILPOINT` names one of them, with the number of the visit at which
//! it takes effect: `after-claim` or `after-claim:3`. Release builds have none of this.

/// Every place there is.
#[cfg(debug_assertions)]
const POINTS: [&str; 10] = [
    "before-claim",
    "after-claim",
    "after-create",
    "before-give-up",
    "before-fail",
    "after-fail",
    "after-begin",
    "after-write",
    "after-told",
    "after-delete",
];

/// Dies here if the environment says so; as with `kill -9`, nothing is cleaned up.
#[cfg(debug_assertions)]
pub(crate) fn reached(point: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    assert!(POINTS.contains(&point), "{point} is not in the list");
    let wanted = WANTED.get_or_init(|| {
        let wanted = std::env::var("PREFECT_AGENT_FAILPOINT").ok()?;
        let (name, visit) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        assert!(POINTS.contains(&name), "there is no failpoint {name}");
        Some((name.to_owned(), AtomicU32::new(visit.parse().unwrap_or(1))))
    });
    let Some((name, visits)) = wanted else {
        return;
    };
    if name == point && visits.fetch_sub(1, Ordering::SeqCst) == 1 {
        std::process::abort();
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_point: &str) {}
