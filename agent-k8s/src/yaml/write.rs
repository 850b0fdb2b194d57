//! YAML for people and for every reader: a text is plain only where no version of YAML, and no
//! tool, takes it for something else.

use serde_json::{Map, Value};

/// Writes a value as a block of YAML. Members keep their order.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => mapping(&mut out, members, 0),
        Value::Array(items) if !items.is_empty() => list(&mut out, items, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn mapping(out: &mut String, members: &Map<String, Value>, indent: usize) {
    for (n, (name, value)) in members.iter().enumerate() {
        if n > 0 {
            pad(out, indent);
        }
        text(out, name);
        out.push(':');
        match value {
            Value::Object(members) if !members.is_empty() => {
                out.push('\n');
                pad(out, indent + 2);
                mapping(out, members, indent + 2);
            }
            // Lists stand below their name without an indent, as Kubernetes' own tools write them.
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                pad(out, indent);
                list(out, items, indent);
            }
            other => {
                out.push(' ');
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn list(out: &mut String, items: &[Value], indent: usize) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            pad(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(members) if !members.is_empty() => mapping(out, members, indent + 2),
            Value::Array(items) if !items.is_empty() => list(out, items, indent + 2),
            other => {
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(value) if is_block(value) => block(out, value, indent),
        Value::String(value) => text(out, value),
        Value::Number(number) => out.push_str(&spelled(number)),
        other => out.push_str(&other.to_string()),
    }
}

/// A number as YAML 1.1 spells it: an exponent needs a point and a sign.
fn spelled(number: &serde_json::Number) -> String {
    let text = number.to_string();
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let point = if digits.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) {
        ""
    } else {
        "+"
    };
    format!("{digits}{point}e{sign}{exponent}")
}

/// Whether a text reads better as lines: several, ended, and with nothing that needs an escape.
fn is_block(text: &str) -> bool {
    text.ends_with('\n')
        && !text.ends_with("\n\n")
        && text.len() > 1
        && !text.starts_with([' ', '\n'])
        && text.chars().all(|c| c == '\n' || is_simple(c))
}

fn block(out: &mut String, text: &str, indent: usize) {
    out.push('|');
    for line in text.lines() {
        out.push('\n');
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
    }
}

fn is_simple(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a1}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}')
}

fn text(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    if text.chars().all(is_simple) && !text.contains('\'') {
        out.push('\'');
        out.push_str(text);
        out.push('\'');
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            _ if is_simple(c) => out.push(c),
            _ => match u32::from(c) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push('"');
}

/// Whether a text is one to every reader without quotes.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 10] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan",
    ];
    let first = text.chars().next();
    let Some('a'..='z' | 'A'..='Z' | '_' | '/') = first else {
        return false;
    };
    let ordinary = |c: char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' | '/');
    text.chars()
        .all(|c| ordinary(c) || matches!(c, ' ' | ':' | '=' | '@' | '+' | ','))
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::yaml::parse;

    #[test]
    fn looks_as_people_write_it() {
        let value = json!({
            "apiVersion": "v1",
            "data": {"key": "012", "id": "353e3347", "note": "a: b", "script": "one\n  two\n"},
            "items": [{"name": "a", "args": ["x", "yes"]}, [], {}],
            "empty": {},
        });
        let text = "apiVersion: v1\ndata:\n  key: '012'\n  id: '353e3347'\n  note: 'a: b'\n  script: |\n    one\n      two\nitems:\n- name: a\n  args:\n  - x\n  - 'yes'\n- []\n- {}\nempty: {}\n";
        assert_eq!(write(&value), text);
        assert_eq!(parse(text.as_bytes()), Ok(value));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            any::<String>(),
            "[ -~\n]{0,8}",
            prop::sample::select(vec![
                "yes",
                "~",
                "0x1",
                "1:30",
                "2020-01-01",
                "<<",
                "=",
                "- a",
                "null"
            ])
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((text.clone(), inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_json()) {
            let text = write(&value);
            prop_assert_eq!(parse(text.as_bytes()), Ok(value), "{}", text);
        }
    }
}
