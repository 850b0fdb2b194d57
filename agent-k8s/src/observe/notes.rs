//! The annotation on a Job that says which of its findings were told, and which are being told.

use std::collections::{BTreeMap, HashSet};

use agent_core::Turn;

/// The annotation's name. Its value is a list of keys, separated by commas; behind a `~` a key has
/// the name of who is about to tell of it.
pub(crate) const REPORTED: &str = "prefect.io/reported";

/// What the annotation says: keys, with the teller of those that were begun and not finished.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes(pub(crate) BTreeMap<String, Option<String>>);

impl Notes {
    /// Reads the annotation's value.
    pub(crate) fn of(annotation: &str) -> Self {
        let notes = annotation.split(',').filter(|note| !note.is_empty());
        let notes = notes.map(|note| match note.split_once('~') {
            Some((key, teller)) => (key.to_owned(), Some(teller.to_owned())),
            None => (note.to_owned(), None),
        });
        Self(notes.collect())
    }

    /// The annotation's value.
    pub(crate) fn write(&self) -> String {
        let notes = self.0.iter().map(|(key, teller)| match teller {
            Some(teller) => format!("{key}~{teller}"),
            None => key.clone(),
        });
        notes.collect::<Vec<_>>().join(",")
    }

    /// The keys of what was told.
    pub(crate) fn told(&self) -> HashSet<String> {
        let told = self.0.iter().filter(|(_, teller)| teller.is_none());
        told.map(|(key, _)| key.clone()).collect()
    }

    /// Has a teller begin with these keys, as far as it is free to; whose turn each of them is.
    pub(crate) fn begin(&mut self, keys: &[String], teller: &str, take_over: bool) -> Vec<Turn> {
        let turn = |key: &String| match self.0.get(key) {
            Some(None) => Turn::Told,
            Some(Some(other)) if other != teller && !take_over => Turn::Theirs,
            _ => {
                self.0.insert(key.clone(), Some(teller.to_owned()));
                Turn::Ours
            }
        };
        keys.iter().map(turn).collect()
    }

    /// Notes that these keys were told.
    pub(crate) fn end(&mut self, keys: &[String]) {
        self.0.extend(keys.iter().map(|key| (key.clone(), None)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys<const N: usize>(keys: [&str; N]) -> Vec<String> {
        keys.map(str::to_owned).to_vec()
    }

    #[test]
    fn each_finding_is_the_turn_of_one_teller_until_it_is_told() {
        let mut notes = Notes::of("p1,w2~dead");
        let asked = keys(["p1", "w2", "job"]);
        let turns = [Turn::Told, Turn::Theirs, Turn::Ours];
        assert_eq!(notes.begin(&asked, "me", false), turns);
        assert_eq!(notes.write(), "job~me,p1,w2~dead");
        assert_eq!(notes.begin(&asked, "me", false), turns);
        let turns = [Turn::Told, Turn::Ours, Turn::Ours];
        assert_eq!(notes.begin(&asked, "me", true), turns);
        notes.end(&keys(["w2", "job"]));
        assert_eq!(notes.write(), "job,p1,w2");
        assert_eq!(notes, Notes::of(&notes.write()));
        assert_eq!(notes.told().len(), 3);
    }
}
