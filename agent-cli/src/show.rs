//! `agent-cli config`: each effective setting and where it came from.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::json;

use crate::args::ListFormat;
use crate::settings::Settings;

/// Prints the settings; secrets are masked.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(settings: &Settings, format: ListFormat) -> Result<()> {
    let text = match format {
        ListFormat::Table => table(settings),
        ListFormat::Json => {
            let rows = settings.effective.iter().map(|one| {
                json!({"name": one.name, "value": one.value, "origin": one.origin.to_string()})
            });
            format!("{:#}\n", rows.collect::<serde_json::Value>())
        }
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write the settings")
}

fn table(settings: &Settings) -> String {
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let rows = &settings.effective;
    let names = width(&mut rows.iter().map(|one| one.name.chars().count()));
    let values = width(&mut rows.iter().map(|one| one.value.chars().count()));
    let mut text = String::new();
    for one in rows {
        let line = format!("{:names$}  {:values$}  {}", one.name, one.value, one.origin);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
