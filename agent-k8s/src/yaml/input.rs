//! The text as the scanner reads it, which ends where the scanner would keep too much of it.
//!
//! Before it tells of a flow collection (`[…]` or `{…}`) the scanner reads it to its end, in case it is
//! a key: what is in it is kept in pieces, of which each takes more than a hundred bytes.

use std::cell::Cell;
use std::rc::Rc;

use saphyr_parser::input::SkipTabs;
use saphyr_parser::{Input, StrInput};

/// How many pieces (values, the marks around them, the lines of a text without `|`) the scanner may read
/// between two events.
pub(super) const PIECES: usize = 100_000;

/// How far the scanner looks ahead when it begins with a piece.
const BEGINS: usize = 4;

/// How many pieces were read since the last event.
#[derive(Clone, Default)]
pub(super) struct Meter(Rc<Cell<usize>>);

impl Meter {
    /// Begins anew, for an event has come.
    pub(super) fn reset(&self) {
        if !self.is_full() {
            self.0.set(0);
        }
    }

    /// Returns whether the text was ended because there were too many.
    pub(super) fn is_full(&self) -> bool {
        self.0.get() > PIECES
    }
}

/// A text that ends once its meter is full.
pub(super) struct Metered<'t> {
    text: StrInput<'t>,
    meter: Meter,
}

impl<'t> Metered<'t> {
    pub(super) fn new(text: &'t str, meter: Meter) -> Self {
        Self {
            text: StrInput::new(text),
            meter,
        }
    }
}

impl Input for Metered<'_> {
    fn lookahead(&mut self, count: usize) {
        if count == BEGINS {
            self.meter.0.set(self.meter.0.get() + 1);
            if self.meter.is_full() {
                self.text = StrInput::new("");
            }
        }
        self.text.lookahead(count);
    }

    fn buflen(&self) -> usize {
        self.text.buflen()
    }

    fn bufmaxlen(&self) -> usize {
        self.text.bufmaxlen()
    }

    fn buf_is_empty(&self) -> bool {
        self.text.buf_is_empty()
    }

    fn raw_read_ch(&mut self) -> char {
        self.text.raw_read_ch()
    }

    fn raw_read_non_breakz_ch(&mut self) -> Option<char> {
        self.text.raw_read_non_breakz_ch()
    }

    fn skip(&mut self) {
        self.text.skip();
    }

    fn skip_n(&mut self, count: usize) {
        self.text.skip_n(count);
    }

    fn peek(&self) -> char {
        self.text.peek()
    }

    fn peek_nth(&self, n: usize) -> char {
        self.text.peek_nth(n)
    }

    fn peek_opt(&self) -> Option<char> {
        self.text.peek_opt()
    }

    // What the text does better than by its characters one by one.

    fn look_ch(&mut self) -> char {
        self.text.look_ch()
    }

    fn next_is_document_indicator(&self) -> bool {
        self.text.next_is_document_indicator()
    }

    fn skip_ws_to_eol(&mut self, skip_tabs: SkipTabs) -> (usize, Result<SkipTabs, &'static str>) {
        self.text.skip_ws_to_eol(skip_tabs)
    }

    fn next_can_be_plain_scalar(&self, in_flow: bool) -> bool {
        self.text.next_can_be_plain_scalar(in_flow)
    }

    fn next_is_blank_or_breakz(&self) -> bool {
        self.text.next_is_blank_or_breakz()
    }

    fn skip_while_non_breakz(&mut self) -> usize {
        self.text.skip_while_non_breakz()
    }

    fn skip_while_blank(&mut self) -> usize {
        self.text.skip_while_blank()
    }

    fn fetch_while_is_alpha(&mut self, out: &mut String) -> usize {
        self.text.fetch_while_is_alpha(out)
    }

    fn fetch_while_is_yaml_non_space(&mut self, out: &mut String) -> usize {
        self.text.fetch_while_is_yaml_non_space(out)
    }
}
