//! `agent-cli config`: each effective setting and where it came from.

use std::borrow::Cow;
use std::io::Write;

use agent_core::shown::one_line;
use anyhow::{Context, Result};
use serde_json::json;

use crate::args::ListFormat;
use crate::settings::Settings;

/// The widest column, in characters: what is wider moves only what follows it.
const WIDEST: usize = 100;

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
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0).min(WIDEST);
    let rows: Vec<(&str, Cow<'_, str>, String)> = settings
        .effective
        .iter()
        .map(|one| (one.name, one_line(&one.value), one.origin.to_string()))
        .collect();
    let names = width(&mut rows.iter().map(|(name, ..)| name.chars().count()));
    let values = width(&mut rows.iter().map(|(_, value, _)| value.chars().count()));
    let mut text = String::new();
    for (name, value, origin) in &rows {
        let line = format!("{name:names$}  {value:values$}  {}", one_line(origin));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
