//! How the command line behaves towards people and shells.

use std::process::{Command, Output, Stdio};

const COMMANDS: [&str; 8] = [
    "start",
    "render",
    "config",
    "check",
    "install",
    "uninstall",
    "completions",
    "man",
];

/// Reads completions, and completes `agent-cli st`.
const COMPLETE: &str = r#"source /dev/stdin
COMP_WORDS=(agent-cli st) COMP_CWORD=1
function=$(complete -p agent-cli | sed 's/.*-F \([^ ]*\).*/\1/')
$function agent-cli st agent-cli
echo "${COMPREPLY[@]}""#;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agent-cli"))
        .env_clear()
        .env("HOME", "/nonexistent")
        .args(args)
        .output()
        .expect("the binary starts")
}

fn out(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_command_has_help_in_groups_with_examples_and_no_colours_in_a_pipe() {
    let help = out(&["--help"]);
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        let of_command = out(&[command, "--help"]);
        assert!(of_command.contains("Example"), "{of_command}");
        assert!(!of_command.contains('\x1b'), "{of_command}");
    }
    let start = out(&["start", "--help"]);
    for group in ["Prefect:", "Jobs:", "Templates:", "Supervision:", "Agent:"] {
        assert_eq!(start.matches(&format!("\n{group}\n")).count(), 1, "{group}");
    }
    assert!(help.contains("Examples:"), "{help}");
}

#[test]
fn a_typo_is_answered_with_what_was_meant() {
    for (args, meant) in [
        (&["strat"][..], "'start'"),
        (&["start", "--namspace=x"], "'--namespace'"),
        (&["install", "--rback"], "'--rbac'"),
        (&["completions", "fihs"], "'fish'"),
    ] {
        let output = run(args);
        let message = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(meant), "{message}");
        assert!(output.stdout.is_empty());
    }
    let output = run(&["man", "strat"]);
    let message = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("only start, render"), "{message}");
}

#[test]
fn shells_understand_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let text = out(&["completions", shell]);
        for command in COMMANDS {
            assert!(text.contains(command), "{shell}: {command}");
        }
        assert!(text.contains("flow-run-key-secret"), "{shell}");
    }
    let script = out(&["completions", "bash"]);
    let Ok(mut bash) = Command::new("bash")
        .args(["-c", COMPLETE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        println!("there is no bash here");
        return;
    };
    let mut input = bash.stdin.take().expect("piped");
    std::io::Write::write_all(&mut input, script.as_bytes()).expect("read");
    drop(input);
    let output = bash.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "start");
}

#[test]
fn the_manual_has_a_page_for_the_program_and_for_each_command() {
    let page = out(&["man"]);
    assert!(page.contains(".TH agent-cli 1"), "{page}");
    for command in COMMANDS {
        let page = out(&["man", command]);
        assert!(
            page.contains(&format!("agent-cli {command}").replace('-', "\\-")),
            "{page}"
        );
    }
}

#[test]
fn the_version_is_the_crates() {
    let version = out(&["--version"]);
    let expected = format!("agent-cli {}", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected), "{version}");
    assert_eq!(version, out(&["start", "--version"]).replace("-start", ""));
}
