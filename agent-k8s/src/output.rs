//! The last lines that a failed container printed, as far as the agent may read them.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use agent_core::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, LogParams};

use crate::error::classify;

/// The most that is taken of one container.
const BYTES: usize = 16 << 10;
/// The largest answer. The API server cuts off what is beyond, which is the end and matters most, so
/// this is far more than the lines of anybody who does not mean to fill a memory.
const ANSWER: i64 = 256 << 10;
/// How long the API server is not asked again after it has refused.
const REFUSED: Duration = Duration::from_secs(600);

/// Reads what containers printed.
#[derive(Debug)]
pub(crate) struct Output {
    /// How many lines of each.
    pub(crate) lines: u16,
    refused: Mutex<Option<Instant>>,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            lines: 50,
            refused: Mutex::default(),
        }
    }
}

impl Output {
    /// The last lines that a container printed, indented, below a heading; `None` when it printed
    /// nothing or may not be read.
    pub(crate) async fn read(
        &self,
        client: &Client,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Option<String>> {
        let refused = *self.refused();
        if refused.is_some_and(|since| since.elapsed() < REFUSED) {
            return Ok(None);
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let parameters = LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(self.lines.into()),
            limit_bytes: Some(ANSWER),
            ..LogParams::default()
        };
        match pods.logs(pod, &parameters).await {
            Ok(text) => Ok(excerpt(container, &text)),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    "The output of failed containers is not shown in flow-run logs: {}",
                    status.message
                );
                *self.refused() = Some(Instant::now());
                Ok(None)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404) => Ok(None),
            Err(error) => Err(classify("Reading the output of a container failed", &error)),
        }
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a text, below a heading.
fn excerpt(container: &str, text: &str) -> Option<String> {
    let text = text.trim_end();
    let from = text.len().saturating_sub(BYTES);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at))?;
    let mut lines = text[from..].lines();
    let mut excerpt = format!("\tLast output of container '{container}':");
    if from > 0 {
        // The first line is only the rest of one.
        lines.next();
    }
    for line in lines {
        excerpt.push_str("\n\t\t");
        excerpt.extend(line.chars().filter(|c| !c.is_control() || *c == '\t'));
    }
    Some(excerpt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_shown_in_whole_lines() {
        assert_eq!(excerpt("flow", "\n \n"), None);
        let shown = excerpt("flow", "a\nb \u{1b}[31mred\n").expect("some");
        assert_eq!(
            shown,
            "\tLast output of container 'flow':\n\t\ta\n\t\tb [31mred"
        );
        let long = format!("{}\nthe end", "ü".repeat(BYTES));
        let shown = excerpt("flow", &long).expect("some");
        assert_eq!(shown, "\tLast output of container 'flow':\n\t\tthe end");
    }
}
