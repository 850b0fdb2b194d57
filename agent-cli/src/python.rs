//! Python literals, in which the Python agent reads and writes lists and mappings.

use serde_json::{Map, Number, Value};
use unicode_general_category::{GeneralCategory, get_general_category};

/// How deep lists and mappings may be nested.
const DEPTH: usize = 50;

/// Reads a Python literal: a number, quoted text, a list, a tuple, a set, a mapping, `True`,
/// `False` or `None`. `None` when the text is something else.
pub fn literal(text: &str) -> Option<Value> {
    // Python takes an indented expression for an error.
    if text.starts_with([' ', '\t']) {
        return None;
    }
    let mut reader = Reader { rest: text };
    let value = reader.expression(0)?;
    reader.space();
    reader.rest.is_empty().then_some(value)
}

/// A list of texts as Python writes it.
pub fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// A text as Python quotes it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push(quote);
    out
}

/// Whether Python shows a character as it is.
fn is_printable(c: char) -> bool {
    use GeneralCategory as Category;
    c == ' '
        || !matches!(
            get_general_category(c),
            Category::Control
                | Category::Format
                | Category::Surrogate
                | Category::PrivateUse
                | Category::Unassigned
                | Category::LineSeparator
                | Category::ParagraphSeparator
                | Category::SpaceSeparator
        )
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self
            .rest
            .trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    }

    fn eat(&mut self, token: char) -> bool {
        self.space();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expression(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        self.space();
        match self.rest.chars().next()? {
            '[' => Some(Value::Array(self.items('[', ']', depth)?.0)),
            '(' => {
                let (mut items, comma) = self.items('(', ')', depth)?;
                if items.len() == 1 && !comma {
                    return items.pop();
                }
                Some(Value::Array(items))
            }
            '{' => self.braces(depth),
            '\'' | '"' => self.texts(),
            'r' | 'R' | 'u' | 'U' if self.is_prefixed() => self.texts(),
            '-' | '+' => {
                let negative = self.rest.starts_with('-');
                self.rest = &self.rest[1..];
                self.space();
                let value = self.number(negative)?;
                Some(value)
            }
            '0'..='9' | '.' => self.number(false),
            _ => self.word(),
        }
    }

    /// Items up to the closing sign, and whether a comma stood behind the last one.
    fn items(&mut self, open: char, close: char, depth: usize) -> Option<(Vec<Value>, bool)> {
        self.eat(open);
        let mut items = Vec::new();
        let mut comma = false;
        while !self.eat(close) {
            if !items.is_empty() && !comma {
                return None;
            }
            items.push(self.expression(depth + 1)?);
            comma = self.eat(',');
        }
        Some((items, comma))
    }

    fn braces(&mut self, depth: usize) -> Option<Value> {
        self.eat('{');
        if self.eat('}') {
            return Some(Value::Object(Map::new()));
        }
        let first = self.expression(depth + 1)?;
        if !self.eat(':') {
            let mut items = vec![first];
            while self.eat(',') {
                if self.eat('}') {
                    return Some(Value::Array(items));
                }
                items.push(self.expression(depth + 1)?);
            }
            return self.eat('}').then_some(Value::Array(items));
        }
        let mut map = Map::new();
        map.insert(key(first)?, self.expression(depth + 1)?);
        loop {
            let comma = self.eat(',');
            if self.eat('}') {
                return Some(Value::Object(map));
            }
            if !comma {
                return None;
            }
            let name = key(self.expression(depth + 1)?)?;
            if !self.eat(':') {
                return None;
            }
            map.insert(name, self.expression(depth + 1)?);
        }
    }

    fn is_prefixed(&self) -> bool {
        self.rest[1..].starts_with(['\'', '"'])
    }

    /// One or more quoted texts, which stand for one.
    fn texts(&mut self) -> Option<Value> {
        let mut text = String::new();
        loop {
            self.space();
            let raw = self.rest.starts_with(['r', 'R']);
            if self.rest.starts_with(['r', 'R', 'u', 'U']) && self.is_prefixed() {
                self.rest = &self.rest[1..];
            }
            if !self.rest.starts_with(['\'', '"']) {
                return Some(Value::String(text));
            }
            text.push_str(&self.text(raw)?);
        }
    }

    fn text(&mut self, raw: bool) -> Option<String> {
        let quote = &self.rest[..1];
        let triple = quote.repeat(3);
        let end = if self.rest.starts_with(&triple) {
            triple.as_str()
        } else {
            quote
        };
        let mut rest = &self.rest[end.len()..];
        let mut text = String::new();
        loop {
            if let Some(after) = rest.strip_prefix(end) {
                self.rest = after;
                return Some(text);
            }
            let c = rest.chars().next()?;
            rest = &rest[c.len_utf8()..];
            match c {
                '\n' if end.len() == 1 => return None,
                '\\' if raw => {
                    text.push('\\');
                    let next = rest.chars().next()?;
                    text.push(next);
                    rest = &rest[next.len_utf8()..];
                }
                '\\' => rest = escape(rest, &mut text)?,
                c => text.push(c),
            }
        }
    }

    fn word(&mut self) -> Option<Value> {
        let end = self
            .rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "None" => Some(Value::Null),
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            _ => None,
        }
    }

    fn number(&mut self, negative: bool) -> Option<Value> {
        let mut last = ' ';
        let end = self.rest.find(|c: char| {
            let sign = matches!(c, '+' | '-') && matches!(last, 'e' | 'E');
            last = c;
            !(sign || c.is_ascii_alphanumeric() || matches!(c, '.' | '_'))
        });
        let (text, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        // Underscores stand between digits only.
        if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
            return None;
        }
        let digits = text.replace('_', "");
        let lower = digits.to_ascii_lowercase();
        let radix = |radix| u64::from_str_radix(&lower[2..], radix).ok();
        let whole = match lower.get(..2) {
            Some("0x") => radix(16),
            Some("0o") => radix(8),
            Some("0b") => radix(2),
            _ if lower.bytes().all(|byte| byte.is_ascii_digit()) => {
                let zeros = lower.starts_with('0') && lower.bytes().any(|byte| byte != b'0');
                if zeros {
                    return None;
                }
                lower.parse().ok()
            }
            _ => None,
        };
        if let Some(whole) = whole {
            return match i64::try_from(whole) {
                Ok(whole) => Some(Value::from(if negative { -whole } else { whole })),
                Err(_) if !negative => Some(Value::from(whole)),
                Err(_) => Number::from_f64(-(whole as f64)).map(Value::Number),
            };
        }
        if !lower.starts_with(|c: char| c.is_ascii_digit() || c == '.') || lower.starts_with("0x") {
            return None;
        }
        let float: f64 = lower.parse().ok()?;
        Number::from_f64(if negative { -float } else { float }).map(Value::Number)
    }
}

/// A key of a mapping as text.
fn key(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(_) | Value::Object(_) => None,
        other => Some(other.to_string()),
    }
}

/// Reads what stands behind a backslash; the rest after it.
fn escape<'a>(rest: &'a str, text: &mut String) -> Option<&'a str> {
    let c = rest.chars().next()?;
    let after = &rest[c.len_utf8()..];
    let code = |digits: usize| {
        let hex = after.get(..digits)?;
        let c = char::from_u32(u32::from_str_radix(hex, 16).ok()?)?;
        Some((c, &after[digits..]))
    };
    let simple = match c {
        '\n' => return Some(after),
        '\\' | '\'' | '"' => c,
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        'x' | 'u' | 'U' => {
            let (c, after) = code(match c {
                'x' => 2,
                'u' => 4,
                _ => 8,
            })?;
            text.push(c);
            return Some(after);
        }
        '0'..='7' => {
            let octal = |c: char| !('0'..='7').contains(&c);
            let end = rest.find(octal).unwrap_or(rest.len()).min(3);
            text.push(char::from_u32(u32::from_str_radix(&rest[..end], 8).ok()?)?);
            return Some(&rest[end..]);
        }
        other => {
            text.push('\\');
            other
        }
    };
    text.push(simple);
    Some(after)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn literals_are_read_and_other_texts_are_not() {
        for (text, value) in [
            ("[]", json!([])),
            ("['a', \"b\",]", json!(["a", "b"])),
            ("('x', 'y')", json!(["x", "y"])),
            ("('x')", json!("x")),
            ("{'A': 'x', \"B\": 2}", json!({"A": "x", "B": 2})),
            ("{'a', 'b'}", json!(["a", "b"])),
            ("'it\\'s' ' two'", json!("it's two")),
            ("r'a\\n'", json!("a\\n")),
            ("'\\x41\\u00e9\\101'", json!("AéA")),
            ("-5", json!(-5)),
            ("1_000", json!(1000)),
            ("0x1f", json!(31)),
            ("1.5e3", json!(1500.0)),
            ("None", json!(null)),
            ("True", json!(true)),
        ] {
            assert_eq!(literal(text), Some(value), "{text}");
        }
        for text in [
            "",
            "a",
            "a,b",
            "[a]",
            "['a'",
            "{'A': null}",
            "0123",
            "prod",
            " [1]",
            "['a' 'b'] x",
            "[,]",
            "{'a':}",
            "1__0",
            "'a",
            "true",
            "http://x",
            "0x",
            "infinity",
            "[1 2]",
        ] {
            assert_eq!(literal(text), None, "{text}");
        }
        assert_eq!(literal(&"[".repeat(10_000)), None);
    }

    #[test]
    fn lists_are_written_as_python_writes_them() {
        let list = |items: &[&str]| {
            list(
                &items
                    .iter()
                    .map(|item| (*item).to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            list(&["a", "it's", "x\"y'", "b\\c"]),
            r#"['a', "it's", 'x"y\'', 'b\\c']"#
        );
        assert_eq!(
            list(&["é日😀", "\u{200b}\u{1}\u{2028}\u{e000}"]),
            r"['é日😀', '\u200b\x01\u2028\ue000']"
        );
        assert_eq!(list(&[]), "[]");
    }
}
