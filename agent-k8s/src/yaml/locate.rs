//! The line and column of a value in a YAML text, for messages.

use std::fmt;

use super::events::{Data, Event, Events, Mark};

/// One step from a value into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To the value of a key.
    Key(String),
    /// To an item of a list, from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Steps as people write them: `spec.containers[0].env`.
pub struct Path<'a>(pub &'a [Step]);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if depth == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Line and column, from 1, of the value at a path, or of the last one on the way to it that is
/// written out in the text. `None` when the text is no YAML.
pub fn locate(text: &[u8], path: &[Step]) -> Option<(u64, u64)> {
    let mut finder = Finder {
        events: Events::new(std::str::from_utf8(text).ok()?),
    };
    loop {
        let event = finder.next()?;
        match event.data {
            Data::StreamStart | Data::DocumentStart => {}
            Data::StreamEnd => return None,
            _ => {
                let mark = finder.find(&event, path)?;
                return Some((mark.line, mark.column));
            }
        }
    }
}

struct Finder<'t> {
    events: Events<'t>,
}

impl Finder<'_> {
    fn next(&mut self) -> Option<Event> {
        self.events.next().ok()
    }

    /// The place of what the path leads to from the node that begins with this event.
    fn find(&mut self, node: &Event, path: &[Step]) -> Option<Mark> {
        let here = node.start;
        match (&node.data, path.split_first()) {
            (Data::MappingStart(..), Some((Step::Key(wanted), rest))) => loop {
                let key = self.next()?;
                let found = match &key.data {
                    Data::MappingEnd => return Some(here),
                    Data::Scalar { value, .. } => value == wanted,
                    _ => false,
                };
                self.skip(&key)?;
                let value = self.next()?;
                if found {
                    return self.find(&value, rest);
                }
                self.skip(&value)?;
            },
            (Data::SequenceStart(..), Some((Step::Index(wanted), rest))) => {
                for index in 0.. {
                    let item = self.next()?;
                    if matches!(item.data, Data::SequenceEnd) {
                        break;
                    }
                    if index == *wanted {
                        return self.find(&item, rest);
                    }
                    self.skip(&item)?;
                }
                Some(here)
            }
            _ => Some(here),
        }
    }

    /// Reads to the end of the node that begins with this event.
    fn skip(&mut self, node: &Event) -> Option<()> {
        let mut depth = opens(&node.data);
        while depth > 0 {
            // What is nested deeper is not read at all.
            if depth > super::DEPTH as i32 {
                return None;
            }
            let event = self.next()?;
            depth += opens(&event.data);
        }
        Some(())
    }
}

fn opens(event: &Data) -> i32 {
    match event {
        Data::MappingStart(..) | Data::SequenceStart(..) => 1,
        Data::MappingEnd | Data::SequenceEnd => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_values_and_says_how_far_it_came() {
        let text = b"a:\n  - b\n  - c: {d: 1,\n      e: x}\n";
        let at = |path: &[Step]| locate(text, path);
        assert_eq!(at(&[]), Some((1, 1)));
        assert_eq!(
            at(&["a".into(), 1.into(), "c".into(), "e".into()]),
            Some((4, 10))
        );
        assert_eq!(at(&["a".into(), 0.into(), "x".into()]), Some((2, 5)));
        assert_eq!(at(&["a".into(), 7.into()]), Some((2, 3)));
        assert_eq!(locate(b"", &[]), None);
        let path = ["a".into(), 1.into(), "c".into()];
        assert_eq!(Path(&path).to_string(), "a[1].c");
    }
}
