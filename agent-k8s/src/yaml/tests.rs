//! What these texts mean was compared with PyYAML 6.0.

use serde_json::json;

use super::*;

fn read(text: &str) -> Value {
    parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn error(text: &str) -> String {
    match parse(text.as_bytes()) {
        Ok(value) => panic!("{text:?} was read as {value}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn plain_scalars_are_what_yaml_1_1_says() {
    for (text, value) in [
        ("yes", json!(true)),
        ("Off", json!(false)),
        ("yEs", json!("yEs")),
        ("y", json!("y")),
        ("012", json!(10)),
        ("089", json!("089")),
        ("0o17", json!("0o17")),
        ("0x_1F", json!(31)),
        ("0b101", json!(5)),
        ("1_000", json!(1000)),
        ("-7", json!(-7)),
        ("1:30", json!(90)),
        ("1:30.5", json!(90.5)),
        ("1:75", json!("1:75")),
        ("1.", json!(1.0)),
        (".5", json!(0.5)),
        ("-.5", json!("-.5")),
        ("1e3", json!("1e3")),
        ("1.0e+3", json!(1000.0)),
        ("1.4.1", json!("1.4.1")),
        ("~", json!(null)),
        ("nUll", json!("nUll")),
        ("2020-01-01", json!("2020-01-01")),
        ("2020-1-1", json!("2020-1-1")),
        (
            "2001-12-14t21:59:43.10-05:00",
            json!("2001-12-14T21:59:43.100000-05:00"),
        ),
        ("2001-12-15 2:59:43", json!("2001-12-15T02:59:43")),
        ("'012'", json!("012")),
        ("\"yes\"", json!("yes")),
        ("!!str 012", json!("012")),
        ("!!int '0x10'", json!(16)),
        ("! 12", json!(12)),
        ("9223372036854775808", json!(9_223_372_036_854_775_808_u64)),
    ] {
        assert_eq!(read(text), value, "{text}");
    }
}

#[test]
fn keys_that_are_not_text_are_spelled_as_in_json() {
    let value = read("{2: a, 1.5: b, yes: c, ~: d, 1.0e+20: e}");
    assert_eq!(
        value,
        json!({"2": "a", "1.5": "b", "true": "c", "null": "d", "1e+20": "e"})
    );
}

#[test]
fn aliases_are_copied_and_merges_keep_what_is_there() {
    let text =
        "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\nd: *a\ne: {'<<': 1}";
    let value = read(text);
    assert_eq!(value["c"], json!({"x": 9, "y": 2, "z": 4}));
    assert_eq!(value["d"], json!({"x": 1, "y": 2}));
    assert_eq!(value["e"], json!({"<<": 1}));
    assert_eq!(read("{a: 1, a: 2}"), json!({"a": 2}));
}

#[test]
fn errors_tell_the_place_and_what_was_expected() {
    for (text, part) in [
        ("a: b: c", "line 1, column 5: "),
        (
            "a: 1\n---\nb: 2\n",
            "line 2, column 1: expected a single document",
        ),
        (
            "a:\n  b: *nope\n",
            "line 2, column 6: while parsing node, found unknown anchor",
        ),
        (
            "a: !secret x",
            "line 1, column 4: could not determine a constructor for the tag '!secret'",
        ),
        ("a: !!python/object:os.path {}", "python/object"),
        ("[1]: 2", "a list cannot be a key"),
        ("2020-01-01: 2", "a date cannot be a key"),
        ("a: 2020-13-01", "line 1, column 4"),
        ("&a [*a]", "contains the alias"),
        ("<<: 1", "for merging"),
        ("a: .inf", "cannot be written"),
        ("a: 0b_", "no whole number"),
        (
            "a: \u{1}",
            "line 1, column 4: the character '\\u{1}' is not allowed",
        ),
    ] {
        let message = error(text);
        assert!(message.contains(part), "{text:?}: {message}");
    }
}

#[test]
fn small_texts_cannot_become_huge_values() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        let last = format!("*a{}, ", n - 1).repeat(10);
        laughs += &format!("a{n}: &a{n} [{}]\n", last.trim_end_matches(", "));
    }
    assert!(error(&laughs).contains("more than 16 MiB of memory"));
    let long = format!(
        "a: &a {}\nb:\n{}",
        "x".repeat(10_000),
        "- *a\n".repeat(10_000)
    );
    let message = error(&long);
    assert!(
        message.starts_with("line 1640, column 3: the values up to here take more than 16 MiB"),
        "{message}"
    );
    assert!(
        message.ends_with("copy less with aliases and merge keys"),
        "{message}"
    );
    let message = error(&format!("{{a: [{}]}}: b", "x,".repeat(100_000)));
    assert!(message.contains("more than 100000 parts"), "{message}");
    for deep in [
        "[".repeat(5000),
        "{a: ".repeat(5000) + "1",
        "- ".repeat(150) + "a",
    ] {
        let message = error(&deep);
        assert!(
            message.contains("nested") || message.contains("recursion limit"),
            "{message}"
        );
    }
}

#[test]
fn a_message_shows_no_more_than_the_ends_of_a_huge_scalar() {
    for text in ["!!int ", "!!bool ", "!!timestamp ", "!", "*"] {
        let message = error(&format!("{text}{}", "x".repeat(1 << 20)));
        assert!(message.len() < 5000, "{text}: {} bytes", message.len());
    }
}

#[test]
fn nothing_is_null_and_marks_are_passed_over() {
    for text in ["", "# nothing\n", "---\n", "---\n...\n"] {
        assert_eq!(read(text), Value::Null, "{text:?}");
    }
    assert_eq!(read("\u{feff}a: 1\r\nb: 2\r\n"), json!({"a": 1, "b": 2}));
}
