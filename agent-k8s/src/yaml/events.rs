//! The events of a YAML text, from a YAML 1.2 scanner.

use saphyr_parser::{Event as Scanned, Parser, ScalarStyle};

use super::YamlError;
use super::input::{Meter, Metered, PIECES};

/// A line and a column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl From<saphyr_parser::Marker> for Mark {
    fn from(marker: saphyr_parser::Marker) -> Self {
        Self {
            line: marker.line() as u64,
            column: marker.col() as u64 + 1,
        }
    }
}

/// A part of the text and where it begins.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) data: Data,
    pub(super) start: Mark,
}

/// The anchor of a node, 0 for none.
pub(super) type Anchor = usize;

/// What a part of the text is. Tags are written out.
#[derive(Debug)]
pub(super) enum Data {
    StreamStart,
    StreamEnd,
    DocumentStart,
    DocumentEnd,
    Alias(Anchor),
    Scalar {
        anchor: Anchor,
        tag: Option<String>,
        value: String,
        plain: bool,
    },
    SequenceStart(Anchor, Option<String>),
    SequenceEnd,
    MappingStart(Anchor, Option<String>),
    MappingEnd,
}

/// Reads the events of a text one by one.
pub(super) struct Events<'t> {
    parser: Parser<'t, Metered<'t>>,
    meter: Meter,
    end: Mark,
}

impl<'t> Events<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let meter = Meter::default();
        Self {
            parser: Parser::new(Metered::new(text, meter.clone())),
            meter,
            end: Mark { line: 1, column: 1 },
        }
    }

    /// The next event; the end of the stream, once it is reached.
    pub(super) fn next(&mut self) -> Result<Event, YamlError> {
        let scanned = self.parser.next_event();
        if self.meter.is_full() {
            return Err(super::at(
                self.end,
                format!(
                    "the value after this place has more than {PIECES} parts; write lists and mappings in lines of their own, without brackets, and long texts after `|`"
                ),
            ));
        }
        self.meter.reset();
        let Some(scanned) = scanned else {
            return Ok(Event {
                data: Data::StreamEnd,
                start: self.end,
            });
        };
        let (event, span) = scanned.map_err(|error| {
            let mark = Mark::from(*error.marker());
            super::at(mark, error.info())
        })?;
        self.end = span.end.into();
        let tag = |tag: Option<std::borrow::Cow<'_, saphyr_parser::Tag>>| {
            tag.map(|tag| format!("{}{}", tag.handle, tag.suffix))
        };
        let data = match event {
            Scanned::Nothing => return self.next(),
            Scanned::StreamStart => Data::StreamStart,
            Scanned::StreamEnd => Data::StreamEnd,
            Scanned::DocumentStart(_) => Data::DocumentStart,
            Scanned::DocumentEnd => Data::DocumentEnd,
            Scanned::Alias(anchor) => Data::Alias(anchor),
            Scanned::Scalar(value, style, anchor, given) => Data::Scalar {
                anchor,
                tag: tag(given),
                value: compact(value.into_owned()),
                plain: matches!(style, ScalarStyle::Plain),
            },
            Scanned::SequenceStart(anchor, given) => Data::SequenceStart(anchor, tag(given)),
            Scanned::SequenceEnd => Data::SequenceEnd,
            Scanned::MappingStart(anchor, given) => Data::MappingStart(anchor, tag(given)),
            Scanned::MappingEnd => Data::MappingEnd,
        };
        Ok(Event {
            data,
            start: span.start.into(),
        })
    }
}

/// The same text without the room that it was given to grow.
fn compact(mut text: String) -> String {
    text.shrink_to_fit();
    text
}
