//! Large templates from a few bytes: lines and fragments of YAML, repeated until there is no room.

/// How large a template may be, in bytes.
pub(crate) const LARGEST: usize = 1 << 20;

/// What templates are made of. `{n}` is a number that counts up, `{m}` the one before.
const PIECES: [&str; 56] = [
    "- x\n",
    "- *a\n",
    "- &a x\n",
    "- &a {k: x}\n",
    "- &a [x, x]\n",
    "- [*a, *a]\n",
    "- {<<: *a, k: x}\n",
    "- <<: [*a, *a]\n",
    "- {k{n}: 1}\n",
    "- [[[]]]\n",
    "- - - x\n",
    "- a: {b: [c]}\n",
    "- &a{n} [*a{m}, *a{m}]\n",
    "- &a{n} {<<: *a{m}, k{n}: *a{m}}\n",
    "- &a{n} x\n",
    "k{n}: 1\n",
    "k{n}: &a{n} {<<: *a{m}}\n",
    "k{n}: *a{m}\n",
    "k{n}:\n",
    "? k{n}\n: x\n",
    "a: &a\n",
    "  k{n}: x\n",
    "  - x\n",
    "  <<: *a\n",
    "  x\n",
    "x: |\n",
    "x: >\n",
    "x: [",
    "x: {",
    "- \"",
    "\"\n",
    "\\x41",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "x",
    "k{n}: x, ",
    "*a, ",
    "&a ",
    "<<: *a, ",
    "? ",
    "- ",
    "\n",
    " ",
    "# ",
    "é😀",
    "!!int ",
    "9",
    ":59",
    "_",
    ".",
    "2020-01-01 ",
    "&a{n} ",
    "!!str ",
];

/// Returns the template that these bytes stand for: of each block a byte for its length and how often
/// it is repeated, and one for each of its pieces. The last block is repeated to the end.
pub(crate) fn template(mut bytes: &[u8]) -> String {
    let (mut text, mut number) = (String::new(), 1);
    while let Some((header, rest)) = bytes.split_first() {
        let length = (usize::from(header & 7) + 1).min(rest.len());
        let (block, rest) = rest.split_at(length);
        bytes = rest;
        let times = match bytes.is_empty() {
            true => usize::MAX,
            false => 1 << (2 * (header >> 4)).min(20),
        };
        for _ in 0..times {
            let before = text.len();
            for piece in block {
                let piece = PIECES[usize::from(*piece) % PIECES.len()];
                if piece.contains('{') {
                    number += usize::from(piece.contains("{n}"));
                    let names = [("{n}", number), ("{m}", number - 1)];
                    text += &names
                        .iter()
                        .fold(piece.to_owned(), |piece, (name, number)| {
                            piece.replace(name, &number.to_string())
                        });
                } else {
                    text += piece;
                }
            }
            if text.len() == before || text.len() > LARGEST {
                break;
            }
        }
        if text.len() > LARGEST {
            text.truncate(text.floor_char_boundary(LARGEST));
            break;
        }
    }
    text
}
