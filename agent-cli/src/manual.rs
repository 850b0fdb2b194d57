//! `agent-cli completions` and `agent-cli man`: what shells and readers of manuals want to know.

use std::io::Write;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Cli, VERSION};

/// The name of the binary.
const NAME: &str = "agent-cli";

/// Prints a shell's completions.
///
/// # Errors
/// When standard output cannot be written.
pub fn completions(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut text);
    print(&text)
}

/// Prints the manual page of the program, or of one of its commands.
///
/// # Errors
/// When there is no such command, and when standard output cannot be written.
pub fn page(command: Option<&str>) -> Result<()> {
    let mut program = Cli::command();
    program.build();
    let command = match command {
        None => program,
        Some(name) => {
            let known = program.get_subcommands().map(|known| known.get_name());
            let known = known.collect::<Vec<_>>().join(", ");
            program
                .find_subcommand(name)
                .with_context(|| format!("there is no command {name:?}, only {known}"))?
                .clone()
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .source(format!("{NAME} {VERSION}"))
        .render(&mut text)
        .context("the manual page cannot be written")?;
    print(&text)
}

fn print(text: &[u8]) -> Result<()> {
    std::io::stdout()
        .write_all(text)
        .context("cannot write to standard output")
}
