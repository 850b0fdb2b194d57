//! The agent's own log: text for people, JSON for machines.

use tracing_subscriber::EnvFilter;

use crate::args::{Level, LogFormat};

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
    // What the AWS SDK warns of is in our own errors, in words.
    let mut directives = format!("{others},aws_config=error");
    for name in crates {
        directives.push_str(&format!(",{name}={ours}"));
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    match format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
            let colours = terminal && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).with_target(false).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Starts logging of nothing but warnings, to standard error: standard output is for the result.
pub fn warnings() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("warn,aws_config=error"))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}
