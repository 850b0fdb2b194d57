//! The annotation of a Job that says how long it is kept after its end: the replica that supervises may
//! have been started with other flags than the one that created the Job.

use std::time::Duration;

use agent_core::Retention;

/// Annotation of Jobs that are kept otherwise than is usual: `forever`, or for so many seconds, as in
/// `succeeded=3600,failed=86400`.
pub(crate) const KEEP: &str = "prefect.io/keep";

const FOREVER: &str = "forever";

/// Returns the annotation's value.
pub(crate) fn format(retention: Retention) -> String {
    match retention {
        Retention::Forever => FOREVER.to_owned(),
        Retention::For { succeeded, failed } => format!(
            "succeeded={},failed={}",
            succeeded.as_secs(),
            failed.as_secs()
        ),
    }
}

/// Reads the annotation's value; what is no such value is none.
pub(crate) fn parse(text: &str) -> Option<Retention> {
    if text == FOREVER {
        return Some(Retention::Forever);
    }
    let (succeeded, failed) = text.split_once(',')?;
    let seconds = |part: &str, name: &str| {
        let number = part.strip_prefix(name)?.strip_prefix('=')?;
        number.parse().ok().map(Duration::from_secs)
    };
    Some(Retention::For {
        succeeded: seconds(succeeded, "succeeded")?,
        failed: seconds(failed, "failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_anything_else_is_not() {
        let hours = |n: u64| Duration::from_secs(3600 * n);
        for retention in [
            Retention::Forever,
            Retention::For {
                succeeded: hours(1),
                failed: hours(24),
            },
        ] {
            assert_eq!(parse(&format(retention)), Some(retention));
        }
        for text in [
            "",
            "ever",
            "succeeded=1",
            "succeeded=1,failed=x",
            "failed=1,succeeded=1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
