//! The agent's own log: text for people, JSON for machines.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use agent_core::shown::{one_line, scrub};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{FormatFields, Writer, debug_fn};

use crate::args::{Level, LogFormat};

/// What libraries log of errors that they also return, and that we tell in words: the AWS SDK's
/// search for credentials, each failed request to the Kubernetes API, each end of a watch.
const TOLD_ELSEWHERE: &str = "aws_config=error,kube_client::client=error,kube_client::client::builder=off,kube_runtime=error";

/// Starts logging to standard output. `RUST_LOG`, when set, wins over the level.
pub fn start(level: Level, format: LogFormat) {
    let (ours, others) = match level {
        Level::Debug => ("debug", "info"),
        Level::Info => ("info", "warn"),
        Level::Warning => ("warn", "warn"),
        Level::Error => ("error", "error"),
    };
    let crates = [
        "agent_cli",
        "agent_core",
        "agent_api_client",
        "agent_k8s",
        "agent_templates",
    ];
    let mut directives = match level {
        Level::Debug => format!("{others},aws_config=error"),
        _ => format!("{others},{TOLD_ELSEWHERE}"),
    };
    for name in crates {
        directives.push_str(&format!(",{name}={ours}"));
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Scrubbed(io::stdout()));
    match format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
            builder
                .fmt_fields(fields())
                .with_ansi(colours(terminal))
                .with_target(false)
                .init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Whether text is coloured: on a terminal, unless `NO_COLOR` says something.
pub fn colours(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts logging of nothing but errors, to standard error: warnings are in the report.
pub fn errors() {
    to_stderr(&format!("error,{TOLD_ELSEWHERE},aws_config=off"));
}

/// Starts logging of nothing but warnings, to standard error: standard output is for the result.
pub fn warnings() {
    to_stderr(&format!("warn,{TOLD_ELSEWHERE}"));
}

/// Writes fields as ever, but each on the line of its event.
fn fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field, value| {
        match (field.name(), writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, true) => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            (name, false) => write!(writer, "{name}=")?,
        }
        write!(OneLine(writer), "{value:?}")
    })
    .delimited(" ")
}

/// Escapes what would end a line or make it look like another one.
struct OneLine<W>(W);

impl<W: fmt::Write> fmt::Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&one_line(text))
    }
}

/// Writes lines in which no address holds credentials.
struct Scrubbed<W>(W);

impl<W: Write> Write for Scrubbed<W> {
    /// Takes a whole event, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(scrub(text).as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn to_stderr(directives: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .fmt_fields(fields())
        .with_writer(|| Scrubbed(io::stderr()))
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}
