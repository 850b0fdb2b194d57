//! What a template costs: whatever is in it, memory and time have bounds.

mod generate;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_core::{
    Flow, FlowRun, Result, Template, TemplateOrigin, TemplateStore, Work, async_trait,
};
use agent_k8s::{Manifest, ManifestSettings, Manifests, yaml};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use serde_json::{Value, json};

use self::generate::LARGEST;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test at a time, for the memory of all is counted together.
static ALONE: Mutex<()> = Mutex::new(());

/// How much memory a template may take at most while it is read, in bytes.
const MEMORY: usize = 64 << 20;
/// How long a template may take; builds for tests are ten times slower than those for use.
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it costs to do something.
#[derive(Debug)]
struct Cost {
    memory: usize,
    time: Duration,
}

fn cost<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let began = Instant::now();
    let done = work();
    let time = began.elapsed();
    let memory = ALLOCATED.peak_usage().saturating_sub(before);
    (done, Cost { memory, time })
}

/// Reads a template and looks a place up in it; fails when that costs too much.
fn read(what: &str, text: &str) -> std::result::Result<Value, String> {
    assert!(text.len() <= LARGEST, "{what}: {}", text.len());
    let (read, cost_of_reading) = cost(|| yaml::parse(text.as_bytes()));
    let read = read.map_err(|error| error.to_string());
    let told = read.as_ref().map_or_else(|error| error.as_str(), |_| "ok");
    let mut costs = vec![("reading", cost_of_reading)];
    if read.is_ok() {
        let path = ["z".into(), 1_000_000.into()];
        let located = cost(|| yaml::locate(text.as_bytes(), &path));
        costs.push(("locating", located.1));
    }
    for (step, cost) in costs {
        println!(
            "{what:32} {step:8} {:6.1} MiB {:6} ms  {}",
            cost.memory as f64 / f64::from(1 << 20),
            cost.time.as_millis(),
            told.chars().take(110).collect::<String>(),
        );
        assert!(
            cost.memory <= MEMORY,
            "{what}: {step} takes {} bytes",
            cost.memory
        );
        assert!(cost.time <= TIME, "{what}: {step} takes {:?}", cost.time);
    }
    if let Err(error) = &read {
        assert!(
            error.len() < 5000,
            "{what}: a message of {} bytes",
            error.len()
        );
    }
    read
}

/// This text again and again, up to the largest template.
fn filled(head: &str, part: &str, tail: &str) -> String {
    let room = LARGEST - head.len() - tail.len();
    format!("{head}{}{tail}", part.repeat(room / part.len()))
}

/// Like [`filled`], with parts that differ.
fn counted(head: &str, part: impl Fn(usize) -> String, tail: &str) -> String {
    let mut text = head.to_owned();
    for n in 0.. {
        let part = part(n);
        if text.len() + part.len() + tail.len() > LARGEST {
            break;
        }
        text += &part;
    }
    text + tail
}

/// Each level holds the one before ten times.
fn laughs(leaf: &str, levels: usize) -> String {
    let mut text = format!("a0: &a0 {leaf}\n");
    for level in 1..levels {
        let last = format!("*a{}, ", level - 1).repeat(10);
        text += &format!("a{level}: &a{level} [{last}]\n");
    }
    text
}

#[test]
fn the_worst_templates_have_bounds() {
    let _alone = alone();
    let long = "x".repeat(LARGEST / 2);
    let digits = "9".repeat(LARGEST - 100);
    for (what, text) in [
        ("laughs", laughs("x", 20)),
        ("laughs of a long text", laughs(&"x".repeat(40_000), 8)),
        (
            "aliases of a long text",
            filled(&format!("a: &a {long}\nb:\n"), "- *a\n", ""),
        ),
        (
            "aliases as keys",
            filled(&format!("a: &a {long}\nb:\n"), "- {*a : 1}\n", ""),
        ),
        (
            "merges of long texts",
            filled(&format!("a: &a {{k: {long}}}\nb:\n"), "- <<: *a\n", ""),
        ),
        (
            "merges into one",
            filled("a: &a {k: 1, l: 2}\nb:\n", "  <<: *a\n", ""),
        ),
        (
            "a list of merges",
            filled("a: &a {k: 1, l: 2}\nb:\n  <<: [", "*a,", "]"),
        ),
        (
            "merges of merges",
            counted(
                "a0: &a0 {k0: 1}\n",
                |n| format!("a{0}: &a{0} {{<<: *a{n}, k{0}: 1}}\n", n + 1),
                "",
            ),
        ),
        (
            "a wide mapping merged",
            counted(
                "a: &a\n",
                |n| format!("  k{n}: 1\n"),
                "b: {<<: *a}\nc: {<<: *a}\n",
            ),
        ),
        ("nested anchors", filled("", "- &a\n ", "- x")),
        (
            "anchors in anchors",
            format!("{}x{}", "&a [".repeat(90), "]".repeat(90)),
        ),
        (
            "anchors in anchors of much",
            format!(
                "{}\n{}",
                (0..90)
                    .map(|n| format!("{}- &a{n}\n", " ".repeat(n)))
                    .collect::<String>(),
                counted("", |n| format!("{}- {n}\n", " ".repeat(91)), "")
                    .chars()
                    .take(900_000)
                    .collect::<String>()
            ),
        ),
        ("anchors", counted("", |n| format!("- &a{n} x\n"), "")),
        ("the same anchor", filled("", "- &a x\n", "")),
        ("anchors in a row", filled("", "&a ", "x")),
        ("brackets of texts", filled("a: [", "x,", "]")),
        ("brackets of nothing", filled("a: [", "[],", "]")),
        ("braces of nothing", filled("a: [", "{},", "]")),
        ("brackets of pairs", filled("a: [", "x: ,", "]")),
        ("brackets of keys", filled("a: [", "? ,", "]")),
        ("brackets of quotes", filled("a: [", "\"\"", "]")),
        ("brackets of tags", filled("a: [", "! ", "]")),
        ("brackets of anchors", filled("a: [", "&a ", "]")),
        ("brackets of aliases", filled("a: &a x\nb: [", "*a,", "]")),
        ("brackets that never close", filled("a: [", "x,", "")),
        (
            "braces of members",
            counted("{", |n| format!("k{n}: 1,"), "}"),
        ),
        (
            "json",
            counted("{", |n| format!("\"name{n}\": \"value\", "), "\"z\": 1}"),
        ),
        ("opening brackets", filled("", "[", "")),
        ("opening braces", filled("", "{a: ", "")),
        (
            "brackets in brackets",
            filled("", &format!("- {}{}\n", "[".repeat(90), "]".repeat(90)), ""),
        ),
        (
            "keys of brackets",
            filled(
                "",
                &format!("{}{}: 1\n", "[".repeat(90), "]".repeat(90)),
                "",
            ),
        ),
        ("items", filled("", "- a\n", "")),
        ("items of nothing", filled("", "-\n", "")),
        ("small mappings", filled("", "- a:\n", "")),
        ("small lists", filled("", "- - a\n", "")),
        ("deep items", filled("", "- ", "a")),
        ("deep keys", filled("", "? ", "a")),
        ("members", counted("", |n| format!("k{n}: 1\n"), "")),
        ("the same member", filled("", "a: 1\n", "")),
        (
            "members without values",
            counted("", |n| format!("{n}:\n"), ""),
        ),
        ("a long text", "x".repeat(LARGEST)),
        (
            "long lines",
            filled("a: |\n", &format!("  {}\n", "x".repeat(1000)), ""),
        ),
        ("short lines", filled("a: |\n", "  x\n", "")),
        ("folded lines", filled("a: >\n", "  x\n\n", "")),
        ("a text of many lines", filled("a: x\n", "  x\n", "")),
        ("a quoted text of many lines", filled("a: \"", " x\n", "\"")),
        ("escapes", filled("a: \"", "\\x41", "\"")),
        ("empty lines", filled("a: |\n", "\n", "  x")),
        ("a long comment", filled("a: 1 #", "x", "")),
        ("comments", filled("", "#\n", "a: 1")),
        ("spaces", filled("a:", " ", "1")),
        (
            "a long key",
            format!("{long}: {}", "y".repeat(LARGEST / 2 - 10)),
        ),
        ("a long question", format!("? {long}\n: 1\n")),
        ("a whole number", digits.clone()),
        ("an octal number", format!("0{}", "7".repeat(LARGEST - 1))),
        ("zeros", "0".repeat(LARGEST)),
        (
            "a hexadecimal number",
            format!("0x{}", "f".repeat(LARGEST - 2)),
        ),
        ("underscores", filled("1", "_", "")),
        ("sixties", filled("1", ":59", "")),
        ("sixties with a fraction", filled("1", ":59", ".5")),
        ("a fraction", format!("0.{digits}")),
        ("a large float", format!("{digits}.5")),
        ("an exponent", format!("1.0e+{digits}")),
        ("a date", format!("2020-01-01T00:00:00.{digits}")),
        (
            "a date that is none",
            format!("2020-01-01T00:00:00.{digits}x"),
        ),
        ("dashes", filled("2020", "-1", "")),
        ("a tagged number", format!("!!int {long}")),
        ("a tagged float", format!("!!float '{long}'")),
        ("a tagged boolean", format!("!!bool '{long}'")),
        ("an unknown tag", format!("!{long} x")),
        ("a tag prefix", format!("%TAG !a! {long}\n---\n- !a!b x\n")),
        (
            "tag prefixes",
            counted("", |n| format!("%TAG !{n}! x\n"), "---\n1"),
        ),
        ("a directive", filled("%FOO", " x", "\n--- 1")),
        ("documents", filled("", "---\n", "")),
        ("tabs", filled("a:", "\t", "1")),
        ("carriage returns", filled("a:", "\r", " 1")),
        ("an unknown alias", format!("*{long}")),
        (
            "a long anchor",
            format!("- &{0} x\n- *{0}", &long[..LARGEST / 2 - 10]),
        ),
        ("wide characters", filled("a: \"", "😀", "\"")),
        ("a character that is not taken", filled("", "é", "\u{1}")),
    ] {
        let _ = read(what, &text);
    }
}

/// Templates whose text is their location.
struct Store;

#[async_trait]
impl TemplateStore for Store {
    async fn load(&self, location: &str, _: TemplateOrigin) -> Result<Arc<Template>> {
        Ok(Arc::new(Template {
            location: location.chars().take(20).collect(),
            bytes: location.into(),
        }))
    }
}

fn manifests() -> Manifests {
    Manifests::new(ManifestSettings::default(), Arc::new(Store))
}

async fn build(manifests: &Manifests, run_config: Value) -> Result<Manifest> {
    let flow = Flow {
        id: "f".to_owned(),
        run_config,
        ..Flow::default()
    };
    let run = FlowRun::new("r", "run", Work::Flow(Box::new(flow)));
    manifests.build(&run, "00000000").await
}

/// A Job with an annotation of so many bytes of JSON, which take many times as much in memory.
fn bloated(bytes: usize) -> String {
    format!(
        "metadata:\n  annotations:\n    a:\n{}spec: {{template: {{spec: {{}}}}}}\n",
        "    - []\n".repeat(bytes / 3)
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn any_large_template_has_bounds(bytes in prop::collection::vec(any::<u8>(), 2..40)) {
        let _alone = alone();
        let text = generate::template(&bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let manifests = manifests();
        let config = json!({"type": "KubernetesRun", "job_template": text});
        let (built, cost) = cost(|| runtime.block_on(build(&manifests, config)));
        let error = built.err().map_or(0, |error| error.to_string().len());
        prop_assert!(error < 5000, "a message of {error} bytes");
        prop_assert!(cost.memory <= MEMORY && cost.time <= TIME, "{cost:?}");
    }
}

#[test]
fn parsed_templates_take_no_more_than_their_share_of_memory() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    let manifests = manifests();
    let before = ALLOCATED.current_usage();
    for n in 0..60 {
        let text = format!("# {n}\n{}", bloated(40_000));
        let config = json!({"type": "KubernetesRun", "job_template_path": text});
        let built = runtime.block_on(build(&manifests, config));
        built.expect("a manifest");
    }
    let held = ALLOCATED.current_usage() - before;
    assert!(held < 18 << 20, "{held} bytes");
    assert!(held > 4 << 20, "{held} bytes: nothing is kept");
}

#[test]
fn large_manifests_are_built_one_after_the_other() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build();
    let runtime = runtime.expect("a runtime");
    let manifests = Arc::new(manifests());
    let text = bloated(250_000);
    let (built, cost) = cost(|| {
        runtime.block_on(async {
            let builds = (0..12).map(|_| {
                let config = json!({"type": "KubernetesRun", "job_template": text});
                let manifests = manifests.clone();
                tokio::spawn(async move {
                    let built = build(&manifests, config).await;
                    tokio::task::yield_now().await;
                    built.is_ok()
                })
            });
            futures::future::join_all(builds.collect::<Vec<_>>()).await
        })
    });
    assert!(
        built
            .into_iter()
            .all(|built| built.is_ok_and(|built| built))
    );
    // The texts of all runs are there already.
    assert!(
        cost.memory < MEMORY + 24 * text.len(),
        "{} bytes",
        cost.memory
    );
}
