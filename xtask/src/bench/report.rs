//! The figures: as tables, as JSON, as plots.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::plot::{Line, Plot, Scale};
use super::process::machine;

/// One thing that was measured.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) value: f64,
}

impl Figure {
    /// What, in which unit, and how much.
    pub(super) fn new(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value }
    }
}

/// All figures of one scenario, one agent and one number of runs.
struct Row {
    scenario: &'static str,
    agent: &'static str,
    runs: usize,
    figures: Vec<Figure>,
}

/// Everything that was measured.
pub(super) struct Report {
    machine: String,
    rows: Vec<Row>,
    remarks: Vec<String>,
}

impl Report {
    /// Nothing yet, on this machine.
    pub(super) fn new() -> Self {
        Self {
            machine: machine(),
            rows: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Adds figures; the same figures.
    pub(super) fn add(
        &mut self,
        scenario: &'static str,
        agent: &'static str,
        runs: usize,
        figures: Vec<Figure>,
    ) -> &[Figure] {
        let shown: Vec<String> = figures
            .iter()
            .map(|one| format!("{} {}", one.name, amount(one)))
            .collect();
        eprintln!("  {agent}: {}", shown.join(", "));
        let row = Row {
            scenario,
            agent,
            runs,
            figures,
        };
        self.rows.push(row);
        &self.rows[self.rows.len() - 1].figures
    }

    /// Adds a sentence.
    pub(super) fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }

    /// Prints a table per scenario, a line per figure, a column per agent and number of runs.
    pub(super) fn print(&self) {
        println!("{}\n", self.machine);
        for scenario in self.scenarios() {
            let rows: Vec<&Row> = self.rows_of(scenario).collect();
            let mut table = Table::new();
            table.load_style(presets::ASCII_MARKDOWN);
            let head = rows.iter().map(|row| match row.runs {
                0 => row.agent.to_owned(),
                runs => format!("{}, {runs}", row.agent),
            });
            table.set_header([scenario.to_owned()].into_iter().chain(head));
            for name in names(&rows) {
                let cells = rows.iter().map(|row| {
                    let found = row.figures.iter().find(|figure| figure.name == name);
                    found.map(amount).unwrap_or_default()
                });
                table.add_row([name.to_owned()].into_iter().chain(cells));
            }
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            println!("{table}\n");
        }
        for remark in &self.remarks {
            println!("{remark}");
        }
    }

    /// Writes everything as JSON.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let rows = self.rows.iter().map(|row| {
            let figures: Vec<Value> = row
                .figures
                .iter()
                .map(|one| json!({"name": one.name, "unit": one.unit, "value": one.value}))
                .collect();
            json!({"scenario": row.scenario, "agent": row.agent, "runs": row.runs, "figures": figures})
        });
        let rows: Vec<Value> = rows.collect();
        let all = json!({"machine": self.machine, "rows": rows, "remarks": self.remarks});
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Writes a plot per scenario that was measured with several numbers of runs: how each cost
    /// grows with that number.
    pub(super) fn plot(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        for scenario in self.scenarios() {
            let rows: Vec<&Row> = self
                .rows_of(scenario)
                .filter(|row| row.agent == self.rows[0].agent && row.runs > 0)
                .collect();
            if rows.len() < 2 {
                continue;
            }
            let line = |name: &'static str| {
                let of = |row: &&Row| {
                    let found = row.figures.iter().find(|one| one.name == name)?;
                    Some((row.runs as f64, found.value)).filter(|(_, value)| *value > 0.0)
                };
                let unit = rows[0].figures.iter().find(|one| one.name == name)?.unit;
                let label = match unit {
                    "" => name.to_owned(),
                    unit => format!("{name} ({unit})"),
                };
                Some(Line {
                    label,
                    points: rows.iter().filter_map(of).collect(),
                })
            };
            let plot = Plot {
                title: format!("{scenario}: cost against the number of runs"),
                across: "runs".to_owned(),
                scale: Scale::Logarithmic,
                lines: names(&rows).into_iter().filter_map(line).collect(),
            };
            let file = directory.join(format!("{scenario}.svg"));
            std::fs::write(&file, plot.svg())
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn scenarios(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        for row in &self.rows {
            if !found.contains(&row.scenario) {
                found.push(row.scenario);
            }
        }
        found
    }

    fn rows_of<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.scenario == scenario)
    }
}

/// The names of all figures, in the order in which they come.
fn names(rows: &[&Row]) -> Vec<&'static str> {
    let mut found = Vec::new();
    for figure in rows.iter().flat_map(|row| &row.figures) {
        if !found.contains(&figure.name) {
            found.push(figure.name);
        }
    }
    found
}

/// A value with its unit, to three digits or so.
fn amount(figure: &Figure) -> String {
    let digits = match figure.value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let value = format!("{:.digits$} {}", figure.value, figure.unit);
    value.trim_end().to_owned()
}

/// Figure by figure, the median of several rounds.
pub(super) fn median_of(rounds: &[Vec<Figure>]) -> Vec<Figure> {
    let Some(first) = rounds.first() else {
        return Vec::new();
    };
    let median = |(n, figure): (usize, &Figure)| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[n].value).collect();
        Figure::new(figure.name, figure.unit, quantile(&mut values, 0.5))
    };
    first.iter().enumerate().map(median).collect()
}

/// The value that this share of all values does not exceed; 0 without any.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&mut values, 0.5), 3.0);
        assert_eq!(quantile(&mut values, 0.99), 5.0);
        assert_eq!(quantile(&mut values, 0.0), 1.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
