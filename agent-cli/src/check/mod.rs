//! `agent-cli check`: says before `start` does whether everything is there that it needs, and what
//! to do about what is not. Neither side is changed.

mod cluster;
mod prefect;
mod report;

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

pub use self::report::{Line, Report, Verdict};
use crate::args::ListFormat;
use crate::settings::Settings;

/// Looks at everything and prints what was found; whether all is well.
///
/// # Errors
/// When standard output cannot be written.
pub async fn run(settings: Result<Settings>, format: ListFormat) -> Result<bool> {
    let report = look(settings).await;
    let mut out = std::io::stdout();
    let text = match format {
        ListFormat::Table => report.table(crate::logging::colours(out.is_terminal())),
        ListFormat::Json => format!("{:#}\n", report.json()),
    };
    out.write_all(text.as_bytes())
        .context("cannot write the report")?;
    Ok(report.is_good())
}

/// Looks at everything.
pub async fn look(settings: Result<Settings>) -> Report {
    let mut report = Report::default();
    let api = settings.and_then(|settings| Ok((settings.api()?, settings)));
    let (api, settings) = match api {
        Ok(good) => good,
        Err(error) => {
            let remedy = "change the setting that is named; `agent-cli config` shows them all once they can be read";
            report.bad("settings", format!("{error:#}"), remedy);
            return report;
        }
    };
    match settings.warnings.as_slice() {
        [] => report.good("settings", "can be read; `agent-cli config` shows them"),
        warnings => report.open("settings", warnings.join("; ")),
    }
    let (found, cluster) = tokio::join!(prefect::look(api), cluster::connect());
    report.extend(found.report);
    cluster::look(&mut report, cluster, settings, found.tenant).await;
    report
}
