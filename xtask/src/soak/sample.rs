//! What an agent holds, looked at again and again.

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::verdict::Levels;
use crate::bench::plot::{Line, Plot, Scale};
use crate::bench::process::{Usage, descriptors, machine};
use crate::bench::report::quantile;

/// How many points a line of the plot has at the most.
const POINTS: usize = 180;
/// How many rows the table has at the most.
const ROWS: usize = 10;

/// One look.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Since the beginning.
    at: Duration,
    memory: f64,
    descriptors: f64,
    threads: f64,
    tasks: f64,
    jobs: f64,
}

/// Something that may not grow.
pub(super) struct Quantity {
    pub(super) name: &'static str,
    pub(super) value: fn(&Sample) -> f64,
    /// By how much it may grow in any case.
    pub(super) slack: f64,
}

/// Everything that may not grow.
pub(super) const QUANTITIES: [Quantity; 4] = [
    Quantity {
        name: "resident memory, MiB",
        value: |sample| sample.memory,
        // The allocator asks for memory in steps of an eighth.
        slack: 0.25,
    },
    Quantity {
        name: "file descriptors",
        value: |sample| sample.descriptors,
        // A connection is opened when requests coincide, and is kept: a dozen after some minutes.
        slack: 8.0,
    },
    Quantity {
        name: "threads",
        value: |sample| sample.threads,
        // Threads for blocking work come and go.
        slack: 2.0,
    },
    Quantity {
        name: "tasks",
        value: |sample| sample.tasks,
        // One per connection, and some per run that is being deployed just now.
        slack: 8.0,
    },
];

impl Sample {
    /// Looks at a process that serves its metrics at this port.
    pub(super) async fn take(pid: u32, port: u16, at: Duration, jobs: usize) -> Result<Self> {
        let metrics = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await?;
        let metrics = metrics.error_for_status()?.text().await?;
        let tasks = metrics.lines().find_map(|line| {
            let value = line.strip_prefix("prefect_agent_tasks ")?;
            value.parse().ok()
        });
        let usage = Usage::of(pid)?;
        Ok(Self {
            at,
            memory: usage.resident,
            descriptors: descriptors(pid)? as f64,
            threads: f64::from(usage.threads),
            tasks: tasks.context("the agent's metrics do not tell its tasks")?,
            jobs: jobs as f64,
        })
    }

    /// What the parts of a soak had in the middle of each.
    fn medians(samples: &[Self], parts: usize) -> Vec<Self> {
        let part = samples.len().div_ceil(parts).max(1);
        let median = |part: &[Self], value: fn(&Self) -> f64| {
            quantile(&mut part.iter().map(value).collect::<Vec<_>>(), 0.5)
        };
        let of = |part: &[Self]| Self {
            at: part.last().map_or(Duration::ZERO, |last| last.at),
            memory: median(part, |sample| sample.memory),
            descriptors: median(part, |sample| sample.descriptors),
            threads: median(part, |sample| sample.threads),
            tasks: median(part, |sample| sample.tasks),
            jobs: median(part, |sample| sample.jobs),
        };
        samples.chunks(part).map(of).collect()
    }
}

/// The levels of a quantity.
pub(super) fn levels(samples: &[Sample], quantity: &Quantity) -> Levels {
    let values: Vec<f64> = samples.iter().map(quantity.value).collect();
    Levels::of(&values, quantity.slack)
}

/// Prints how everything went.
pub(super) fn print(samples: &[Sample]) {
    println!("{}\n", machine());
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let names = QUANTITIES.iter().map(|quantity| quantity.name);
    table.set_header(["minutes"].into_iter().chain(names).chain(["Jobs"]));
    for row in Sample::medians(samples, ROWS) {
        let mut cells = vec![format!("{:.1}", row.at.as_secs_f64() / 60.0)];
        cells.extend(QUANTITIES.iter().enumerate().map(|(n, quantity)| {
            let digits = usize::from(n == 0);
            format!("{:.digits$}", (quantity.value)(&row))
        }));
        cells.push(row.jobs.to_string());
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}\n");
}

/// Draws how everything went.
pub(super) fn svg(samples: &[Sample], title: String) -> String {
    let shown = Sample::medians(samples, POINTS);
    let line = |quantity: &Quantity| Line {
        label: quantity.name.to_owned(),
        points: shown
            .iter()
            .map(|sample| (sample.at.as_secs_f64() / 60.0, (quantity.value)(sample)))
            .collect(),
    };
    let plot = Plot {
        title,
        across: "minutes".to_owned(),
        scale: Scale::Linear,
        lines: QUANTITIES.iter().map(line).collect(),
    };
    plot.svg()
}
