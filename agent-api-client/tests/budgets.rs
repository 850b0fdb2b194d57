//! What a row of the API costs: whatever is in it, memory and time have bounds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_api_client::decode;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test at a time, for the memory of all is counted together.
static ALONE: Mutex<()> = Mutex::new(());

/// How large a row may be, in bytes: the API takes no larger requests.
const LARGEST: usize = 5_000_000;
/// How much of that is left for the rest of a row, in bytes.
const REST: usize = 1000;
/// How much memory a row may take at most while it is read, in bytes.
const MEMORY: usize = 64 << 20;
/// How long a row may take; builds for tests are ten times slower than those for use.
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });

/// The members of a row that may hold anything; `row` stands for the row itself.
const PLACES: [&str; 8] = [
    "row",
    "run_config",
    "storage",
    "serialized_state",
    "state",
    "context",
    "task_runs",
    "unknown",
];
/// Of these, those that are read differently.
const SOME_PLACES: [&str; 4] = ["row", "run_config", "state", "task_runs"];

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer of one row, with this at one place of it.
fn answer(place: &str, json: &str) -> String {
    let at = |name: &str, other: &'static str| if place == name { json } else { other };
    let state = format!(
        r#"{{"type": "Submitted", "state": {}, "context": {}}}"#,
        at("state", "null"),
        at("context", "{}")
    );
    let state = if place == "serialized_state" {
        json
    } else {
        &state
    };
    let row = format!(
        r#"{{"id": "r", "version": 3, "name": "n", "task_runs": {}, "run_config": {},
        "unknown": {}, "serialized_state": {state}, "scheduled_start_time": null,
        "flow": {{"id": "f", "name": "etl", "storage": {}, "environment": null, "core_version": "1.4.1"}}}}"#,
        at("task_runs", "[]"),
        at("run_config", "null"),
        at("unknown", "null"),
        at("storage", "null"),
    );
    let row = if place == "row" { json } else { &row };
    format!(r#"{{"data": {{"flow_run": [{row}]}}}}"#)
}

/// Reads a row; fails when that costs too much, or when a part that a flow's author writes hides the run.
fn read(what: &str, place: &str, json: &str) {
    let answer = answer(place, json);
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let began = Instant::now();
    let read = decode::ready(answer.as_bytes());
    let (time, peak) = (began.elapsed(), ALLOCATED.peak_usage());
    let memory = peak.saturating_sub(before);
    let told = match &read {
        Ok(runs) => format!("{} runs", runs.len()),
        Err(cause) => cause.to_string(),
    };
    println!(
        "{what:20} {place:16} {:6.1} MiB {:6} ms  {}",
        memory as f64 / f64::from(1 << 20),
        time.as_millis(),
        told.chars().take(80).collect::<String>()
    );
    let of_author = matches!(
        place,
        "run_config" | "storage" | "serialized_state" | "state" | "context"
    );
    if let Ok(runs) = &read
        && of_author
    {
        assert_eq!(runs.len(), 1, "{what} as {place}");
    }
    let length = told.len();
    assert!(
        length < 5000,
        "{what} as {place}: a message of {length} bytes"
    );
    assert!(memory <= MEMORY, "{what} as {place} takes {memory} bytes");
    assert!(time <= TIME, "{what} as {place} takes {time:?}");
}

/// As many parts as have room.
fn filled(open: &str, part: impl Fn(usize) -> String, close: &str) -> String {
    let mut text = open.to_owned();
    for n in 0.. {
        let part = part(n);
        if text.len() + part.len() + REST > LARGEST {
            break;
        }
        if n > 0 {
            text.push(',');
        }
        text += &part;
    }
    text + close
}

#[test]
fn the_worst_rows_have_bounds() {
    let _alone = alone();
    let most = LARGEST - REST;
    let deep =
        |n: usize, open: &str, close: &str| format!("{}1{}", open.repeat(n), close.repeat(n));
    let list = |part: &'static str| filled("[", move |_| part.to_owned(), "]");
    for (what, json) in [
        ("numbers", list("1")),
        ("lists", list("[]")),
        ("objects", list("{}")),
        ("small objects", list(r#"{"a":1}"#)),
        ("texts", list(r#""""#)),
        ("members", filled("{", |n| format!("\"{n}\":1"), "}")),
        (
            "the same member",
            filled("{", |_| r#""a":1"#.to_owned(), "}"),
        ),
        (
            "wide and deep",
            deep(10, &format!("[{}", "1,".repeat(most / 20)), "]"),
        ),
        ("a long text", format!("\"{}\"", "x".repeat(most))),
        ("escapes", format!("\"{}\"", "\\u0041".repeat(most / 6))),
        ("a long key", format!("{{\"{}\": 1}}", "x".repeat(most))),
        ("a long number", "9".repeat(most)),
        ("a long fraction", format!("0.{}", "9".repeat(most))),
        ("spaces", format!("[{}]", " ".repeat(most))),
        ("deep lists", deep(most / 2, "[", "]")),
        ("deep objects", deep(most / 6, r#"{"a":"#, "}")),
        ("less deep lists", deep(100, "[", "]")),
        ("half a list", "[1,".repeat(most / 3)),
        (
            "task runs",
            filled("[", |n| format!(r#"{{"id":"{n}"}}"#), "]"),
        ),
    ] {
        for place in SOME_PLACES {
            read(what, place, &json);
        }
    }
}

/// JSON from a few bytes: fragments, repeated until there is no room; what is open is closed.
fn generated(bytes: &[u8]) -> String {
    const PIECES: [&str; 20] = [
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"a\":",
        "\"\"",
        "1",
        "null",
        "\"x",
        "\"",
        "[],",
        "{},",
        "1,",
        "\"k\":{",
        " ",
        "\"k\":[1],",
        "{\"a\":1},",
        "\"type\":\"Scheduled\",",
    ];
    let mut text = String::new();
    let blocks = bytes.chunks(5);
    let last = blocks.len().saturating_sub(1);
    for (n, block) in blocks.enumerate() {
        let times = if n == last {
            usize::MAX
        } else {
            1 << (block[0] % 16)
        };
        for _ in 0..times {
            let before = text.len();
            let pieces = block[1..].iter();
            text.extend(pieces.map(|byte| PIECES[usize::from(*byte) % PIECES.len()]));
            if text.len() == before || text.len() > LARGEST - 2 * REST {
                break;
            }
        }
    }
    text.truncate(LARGEST - 2 * REST);
    let text = text.trim_end_matches(',');
    let mut open = Vec::new();
    for byte in text.bytes() {
        match byte {
            b'[' => open.push(']'),
            b'{' => open.push('}'),
            b']' | b'}' => drop(open.pop()),
            _ => {}
        }
    }
    let mut text = text.to_owned();
    text.extend(open.into_iter().rev().take(REST));
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn any_large_row_has_bounds(
        bytes in prop::collection::vec(any::<u8>(), 2..40),
        place in prop::sample::select(PLACES.to_vec()),
    ) {
        let _alone = alone();
        read("generated", place, &generated(&bytes));
    }
}
