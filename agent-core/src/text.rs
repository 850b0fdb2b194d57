//! Texts that others wrote, at a length that suits a message.

use std::borrow::Cow;

/// How long a message may become, in bytes: enough for a stack of causes, too little to fill a log.
pub const LONGEST_MESSAGE: usize = 4 << 10;

/// Returns the text if it has at most `most` bytes, else its head and its tail with a note between
/// them of how much was left out. No character is cut in two.
///
/// The result has at most `most` bytes where the note has room in them, and is the note alone
/// otherwise.
pub fn clip(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let note = |bytes: usize| format!("… ({bytes} bytes left out) …");
    let room = most.saturating_sub(note(text.len()).len());
    // What went wrong stands at the head as a rule, and what to do about it at the tail.
    let head = &text[..text.floor_char_boundary(room - room / 3)];
    let tail = &text[text.ceil_char_boundary(text.len() - room / 3)..];
    let left_out = text.len() - head.len() - tail.len();
    Cow::Owned(format!("{head}{}{tail}", note(left_out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fits_stays_as_it_is() {
        assert!(matches!(clip("", 0), Cow::Borrowed("")));
        assert!(matches!(clip("ab", 2), Cow::Borrowed("ab")));
    }

    #[test]
    fn a_long_text_keeps_its_head_and_its_tail() {
        let text = format!("job.yaml: {}; make it shorter", "x".repeat(1 << 20));
        let clipped = clip(&text, 100);
        assert!(clipped.len() <= 100, "{clipped}");
        assert!(clipped.starts_with("job.yaml: xxx"), "{clipped}");
        assert!(clipped.ends_with("; make it shorter"), "{clipped}");
        let left_out = text.len() - (clipped.len() - "… (1048542 bytes left out) …".len());
        let note = format!("… ({left_out} bytes left out) …");
        assert!(clipped.contains(&note), "{clipped}");
    }

    #[test]
    fn no_character_is_cut_in_two_and_no_length_exceeded() {
        let text = "aé日😀".repeat(50);
        for most in 0..text.len() {
            let clipped = clip(&text, most);
            assert!(clipped.len() <= most.max(40), "{most}: {clipped}");
            assert!(clipped.contains("bytes left out"), "{most}: {clipped}");
        }
    }
}
