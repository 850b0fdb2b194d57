//! A process that reads one template, for what only the environment of a process decides.

use std::process::{Command, ExitCode, Stdio};

use agent_core::{TemplateOrigin, TemplateStore};
use agent_templates::{TemplateSettings, Templates};

/// Makes this program such a process, and says what it reads.
const READ: &str = "TEST_READS_TEMPLATE";
/// Whether it reads as the agent or as a flow.
const AS_FLOW: &str = "TEST_READS_AS_FLOW";

/// What such a process found.
#[derive(Debug)]
pub(crate) enum Outcome {
    Found(String),
    Permanent(String),
    Transient(String),
}

impl Outcome {
    pub(crate) fn found(self) -> String {
        match self {
            Self::Found(text) => text,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn permanent(self) -> String {
        match self {
            Self::Permanent(text) => text,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn transient(self) -> String {
        match self {
            Self::Transient(text) => text,
            other => panic!("{other:?}"),
        }
    }
}

/// Reads a template in a process with this environment and nothing else of ours.
pub(crate) async fn read(
    location: &str,
    origin: TemplateOrigin,
    environment: &[(&str, &str)],
) -> Outcome {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .env_clear()
        .env(READ, location)
        .envs(environment.iter().copied())
        .stdin(Stdio::null());
    if origin == TemplateOrigin::Flow {
        command.env(AS_FLOW, "1");
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("no panic").expect("a process");
    let text = String::from_utf8(output.stdout).expect("text");
    match output.status.code() {
        Some(0) => Outcome::Found(text),
        Some(1) => Outcome::Permanent(text),
        Some(2) => Outcome::Transient(text),
        _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Reads the template that the environment names, if it does.
pub(crate) fn main() -> Option<ExitCode> {
    let location = std::env::var(READ).ok()?;
    let origin = match std::env::var_os(AS_FLOW) {
        Some(_) => TemplateOrigin::Flow,
        None => TemplateOrigin::Agent,
    };
    let mut code = 0;
    crate::run(async {
        let templates = Templates::new(TemplateSettings::default());
        match templates.load(&location, origin).await {
            Ok(found) => print!("{}", String::from_utf8_lossy(&found.bytes)),
            Err(error) => {
                print!("{error}");
                code = if error.is_transient() { 2 } else { 1 };
            }
        }
    });
    Some(code.into())
}
