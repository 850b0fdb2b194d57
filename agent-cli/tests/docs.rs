//! The user guide and the README stay true: what they show is read, and what they tell to run is
//! run, as far as it needs no server.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent_cli::args::Cli;
use clap::{CommandFactory, Parser};
use serde_json::Value;

/// Commands that contact nobody.
const ALONE: [&str; 7] = [
    "render",
    "config",
    "install",
    "uninstall",
    "completions",
    "man",
    "--version",
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the workspace")
}

struct Page {
    path: PathBuf,
    text: String,
}

/// What stands between two fences: the words after the first one, and the lines.
struct Block<'a> {
    language: &'a str,
    file: Option<&'a str>,
    text: String,
}

impl Page {
    fn name(&self) -> String {
        let path = self.path.strip_prefix(root()).expect("in the workspace");
        path.display().to_string()
    }

    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let mut open = false;
        for line in self.text.lines() {
            match line.strip_prefix("```") {
                Some(_) if open => open = false,
                Some(words) => {
                    open = true;
                    let mut words = words.split_whitespace();
                    blocks.push(Block {
                        language: words.next().unwrap_or_default(),
                        file: words.next(),
                        text: String::new(),
                    });
                }
                None if open => {
                    let block = blocks.last_mut().expect("an open one");
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                None => {}
            }
        }
        assert!(!open, "{}: a block is not closed", self.name());
        blocks
    }

    /// The text outside of blocks.
    fn prose(&self) -> String {
        let parts = self.text.split("```").step_by(2);
        parts.collect::<Vec<_>>().join("\n")
    }

    /// What stands in backticks in the prose.
    fn quoted(&self) -> Vec<String> {
        let prose = self.prose();
        let quoted = prose.split('`').skip(1).step_by(2);
        quoted.map(|text| text.replace('\n', " ")).collect()
    }

    /// What is typed at a prompt, in parts that a pipe connects.
    fn commands(&self) -> Vec<Vec<Vec<String>>> {
        let blocks = self.blocks();
        let consoles = blocks.iter().filter(|block| block.language == "console");
        let lines = consoles.flat_map(|block| block.text.lines());
        let typed = lines.filter_map(|line| line.strip_prefix("$ "));
        typed.map(words).collect()
    }
}

/// The words of a line as a shell reads them, pipe by pipe; quotes are known, nothing else.
fn words(line: &str) -> Vec<Vec<String>> {
    let mut parts = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    for c in line.chars().chain([' ']) {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '|') => {
                let part = parts.last_mut().expect("one");
                part.extend(word.take());
                if c == '|' {
                    parts.push(Vec::new());
                }
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "an open quote: {line}");
    parts
}

fn pages() -> Vec<Page> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root().join("docs"))
        .expect("docs")
        .map(|entry| entry.expect("a file").path())
        .collect();
    paths.push(root().join("README.md"));
    paths.sort();
    let page = |path: PathBuf| Page {
        text: std::fs::read_to_string(&path).expect("text"),
        path,
    };
    paths.into_iter().map(page).collect()
}

#[test]
fn the_commands_are_ones_that_the_agent_takes() {
    let mut count = 0;
    let pages = pages();
    for page in &pages {
        let dir = tempfile::tempdir().expect("a directory");
        // The page's own files, over those that other pages show.
        let others = pages.iter().flat_map(Page::blocks);
        for block in others.chain(page.blocks()) {
            if let Some(file) = block.file {
                std::fs::write(dir.path().join(file), &block.text).expect("written");
            }
        }
        for words in page.commands().iter().flatten() {
            let [program, rest @ ..] = words.as_slice() else {
                panic!("{}: an empty command", page.name())
            };
            let rest = match rest.iter().position(|word| word == "agent-cli") {
                // In a pod.
                Some(at) if program == "kubectl" => &rest[at + 1..],
                _ if program.ends_with("agent-cli") => rest,
                _ => continue,
            };
            count += 1;
            let first = rest.first().map(String::as_str).unwrap_or_default();
            if ALONE.contains(&first) {
                let output = Command::new(env!("CARGO_BIN_EXE_agent-cli"))
                    .env_clear()
                    .env("HOME", dir.path())
                    .current_dir(dir.path())
                    .args(rest)
                    .output()
                    .expect("the binary starts");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{}: {words:?}: {said}",
                    page.name()
                );
                assert!(said.is_empty(), "{}: {words:?}: {said}", page.name());
            } else {
                let line = ["agent-cli".to_owned()].into_iter().chain(rest.to_vec());
                let parsed = Cli::try_parse_from(line);
                assert!(parsed.is_ok(), "{}: {words:?}: {parsed:?}", page.name());
                // Nobody who follows this has a key for Cloud.
                let has = |part: &str| rest.iter().any(|word| word.starts_with(part));
                let for_server = !has("http://") || has("--backend");
                assert!(for_server, "{}: {words:?}", page.name());
            }
        }
    }
    println!("{count} commands");
    assert!(count > 20, "{count}");
}

#[test]
fn what_is_shown_can_be_read() {
    for page in pages() {
        for block in page.blocks() {
            let place = format!("{}:\n{}", page.name(), block.text);
            match block.language {
                "yaml" => {
                    let value = agent_k8s::yaml::parse(block.text.as_bytes());
                    let value = value.unwrap_or_else(|error| panic!("{error} in {place}"));
                    assert!(value.is_object(), "{place}");
                }
                "json" => {
                    let value: Result<Value, _> = serde_json::from_str(&block.text);
                    assert!(value.is_ok(), "{value:?} in {place}");
                }
                "python" => python(&block.text, &place),
                "console" => {
                    let typed = block.text.lines().all(|line| line.starts_with("$ "));
                    assert!(typed, "{place}");
                }
                other => panic!("{other:?} is read by no test: {place}"),
            }
        }
    }
}

/// Reads Python, where there is one.
fn python(text: &str, place: &str) {
    let mut child = match Command::new("python3")
        .args(["-c", "import ast, sys; ast.parse(sys.stdin.read())"])
        .stdin(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => return println!("no Python here ({error}): not read"),
    };
    let mut input = child.stdin.take().expect("piped");
    input.write_all(text.as_bytes()).expect("read");
    drop(input);
    assert!(child.wait().expect("it ends").success(), "{place}");
}

#[test]
fn the_permissions_shown_are_the_agents() {
    let page = std::fs::read_to_string(root().join("docs/cluster.md")).expect("text");
    let page = Page {
        path: root().join("docs/cluster.md"),
        text: page,
    };
    let blocks = page.blocks();
    let shown = blocks
        .iter()
        .find(|block| block.text.contains("kind: Role\n"));
    let shown: Value = serde_yaml::from_str(&shown.expect("a Role").text).expect("YAML");
    let rules = agent_k8s::access::rules("prefect-agent-apollo-4200");
    let role = agent_k8s::access::role("prefect-agent", "flows", &rules);
    assert_eq!(shown, serde_json::to_value(&role).expect("JSON"));
}

#[test]
fn flags_that_are_named_exist() {
    let mut program = Cli::command();
    program.build();
    let flags: BTreeSet<String> = program
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .chain(["--help".to_owned()])
        .collect();
    for page in pages() {
        for quoted in page.quoted() {
            let Some(flag) = quoted.split([' ', '=']).next() else {
                continue;
            };
            if flag.starts_with("--") && flag.len() > 2 {
                assert!(flags.contains(flag), "{}: {quoted}", page.name());
            }
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let prose = page.prose();
        for rest in prose.split("](").skip(1) {
            let (link, _) = rest.split_once(')').expect("closed");
            if link.starts_with("http") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.path.clone(),
                path => page.path.parent().expect("a folder").join(path),
            };
            assert!(target.exists(), "{}: {link}", page.name());
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&target).expect("text");
                let found = text
                    .lines()
                    .any(|line| line.starts_with('#') && anchor(line) == heading);
                assert!(found, "{}: {link}", page.name());
            }
        }
    }
}

#[test]
fn every_table_has_a_head_and_rows_of_one_width() {
    for page in pages() {
        let prose = page.prose();
        let mut lines = prose.lines().peekable();
        while let Some(head) = lines.next() {
            if !head.starts_with('|') {
                continue;
            }
            let cells = |row: &str| row.replace("\\|", "").matches('|').count();
            let rule = lines.next().unwrap_or_default();
            assert!(rule.starts_with("| ---"), "{}: {head}", page.name());
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                assert_eq!(cells(row), cells(head), "{}: {row}", page.name());
            }
        }
    }
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn messages_in_the_troubleshooting_are_ones_that_the_agent_gives() {
    let mut sources = String::new();
    for crate_ in ["core", "api-client", "templates", "k8s", "cli"] {
        collect(&root().join(format!("agent-{crate_}/src")), &mut sources);
    }
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).expect("text");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let mut count = 0;
    for row in rows {
        let (message, remedy) = row.split_once(" | ").expect("two columns");
        if message == "---" {
            continue;
        }
        assert!(remedy.trim_end_matches(" |").len() > 3, "{row}");
        for quoted in message.split('`').skip(1).step_by(2) {
            for part in quoted.split('…') {
                let part = part.trim_matches([' ', ':', ';']);
                assert!(sources.contains(part), "nobody says {part:?}");
                count += 1;
            }
        }
    }
    println!("{count} messages");
    assert!(count > 60, "{count}");
}

fn collect(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            collect(&path, into);
        } else {
            into.push_str(&std::fs::read_to_string(&path).expect("text"));
        }
    }
}
