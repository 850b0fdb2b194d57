//! What was found, for people and for programs.

use agent_core::shown::{one_line, scrub};
use agent_core::{LONGEST_MESSAGE, clip};
use agent_k8s::yaml;
use serde_json::{Value, json};

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// It could not be looked at, or it matters little.
    Open,
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
pub struct Line {
    /// What was looked at, always in the same words.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it, in one sentence, if it is not as it should be.
    pub remedy: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Default)]
pub struct Report {
    /// In the order in which things depend on each other.
    pub lines: Vec<Line>,
    /// What is not allowed in the cluster, as a Role that would allow it.
    pub role: Option<Value>,
}

impl Report {
    pub(super) fn good(&mut self, name: &'static str, detail: impl Into<String>) {
        self.add(name, Verdict::Good, detail.into(), None);
    }

    pub(super) fn open(&mut self, name: &'static str, detail: impl Into<String>) {
        self.add(name, Verdict::Open, detail.into(), None);
    }

    pub(super) fn bad(
        &mut self,
        name: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(name, Verdict::Bad, detail.into(), Some(remedy.into()));
    }

    /// Notes things that could not be looked at because of something before them.
    pub(super) fn skip(&mut self, names: &[&'static str], because: &str) {
        for name in names {
            self.open(name, format!("not looked at: {because}"));
        }
    }

    fn add(
        &mut self,
        name: &'static str,
        verdict: Verdict,
        detail: String,
        remedy: Option<String>,
    ) {
        let shown = |text: &str| one_line(&clip(&scrub(text), LONGEST_MESSAGE)).into_owned();
        self.lines.push(Line {
            name,
            verdict,
            detail: shown(&detail),
            remedy: remedy.map(|remedy| shown(&remedy)),
        });
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.lines.extend(other.lines);
    }

    /// Whether nothing is as it should not be.
    pub fn is_good(&self) -> bool {
        self.lines.iter().all(|line| line.verdict != Verdict::Bad)
    }

    /// For people.
    pub fn table(&self, colours: bool) -> String {
        let names = self.lines.iter().map(|line| line.name.chars().count());
        let width = names.max().unwrap_or(0);
        let mut text = String::new();
        for line in &self.lines {
            let (mark, colour) = match line.verdict {
                Verdict::Good => ('✓', "32"),
                Verdict::Bad => ('✗', "31"),
                Verdict::Open => ('–', "33"),
            };
            let mark = match colours {
                true => format!("\x1b[{colour}m{mark}\x1b[0m"),
                false => mark.to_string(),
            };
            text.push_str(&format!("{mark} {:width$}  {}\n", line.name, line.detail));
            if let Some(remedy) = &line.remedy {
                text.push_str(&format!("  {:width$}  → {remedy}\n", ""));
            }
        }
        if let Some(role) = &self.role {
            text.push_str("\nWhat is not allowed, as a Role for whoever runs the agent:\n\n");
            text.push_str(&yaml::write(role));
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            let ok = match line.verdict {
                Verdict::Good => Some(true),
                Verdict::Bad => Some(false),
                Verdict::Open => None,
            };
            json!({"name": line.name, "ok": ok, "detail": line.detail, "remedy": line.remedy})
        });
        json!({
            "ok": self.is_good(),
            "checks": lines.collect::<Value>(),
            "role": self.role,
        })
    }
}
