//! What a user gives is not shown where others may read it, and cannot pose as something else.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

/// The exit code, and everything that is printed.
fn run(args: &[&str], env: &[(&str, &OsStr)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_agent-cli"))
        .env_clear()
        .env("HOME", dir.path())
        .envs(env.iter().copied())
        .current_dir(dir.path())
        .args(args)
        .output()
        .expect("it runs");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).expect("text");
    (output.status.code(), printed)
}

/// Addresses with a password and a signature, sound ones and others.
const ADDRESSES: [&str; 12] = [
    "http://me:hush@localhost:1",
    "http://me:hu/sh@localhost:1",
    "http://me:hu@sh@localhost:1/a",
    "http://me:hush#@localhost:1",
    "http://localhost:1/graphql?token=hush",
    "http:/me:hush@localhost:1",
    "http:me:hush@localhost:1",
    "me:hush@localhost:1",
    "hush@localhost:1",
    "://me:hush@localhost:1",
    "ftp://me:hush@localhost:1",
    "http://me:hush@localhost:port",
];

fn assert_hidden(args: &[&str], env: &[(&str, &str)]) -> String {
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (*name, OsStr::new(*value)))
        .collect();
    let (_, printed) = run(args, &env);
    for part in ["hush", "hu/sh", "hu@sh", "X-Amz-Signature"] {
        assert!(!printed.contains(part), "{args:?} {env:?}: {printed}");
    }
    assert!(!printed.contains("panicked"), "{printed}");
    printed
}

#[test]
fn no_command_shows_the_credentials_of_an_address() {
    for address in ADDRESSES {
        for command in ["config", "check", "start"] {
            let server = [command, "--backend", "server"];
            for flag in ["--api", "--agent-address"] {
                assert_hidden(&[&server[..], &[flag, address]].concat(), &[]);
            }
            let variables = [
                ("PREFECT__CLOUD__API", address),
                ("PREFECT__CLOUD__AGENT__AGENT_ADDRESS", address),
            ];
            for variable in variables {
                assert_hidden(&server, &[variable]);
            }
        }
        assert_hidden(&["install", "--backend", "mars", "--api", address], &[]);
        assert_hidden(&[address], &[]);
        assert_hidden(&["start", "--max-polls", address], &[]);
    }
    for address in &ADDRESSES[8..] {
        let install = ["install", "--backend", "server", "--api", address];
        assert_hidden(&install, &[]);
    }
    let printed = assert_hidden(&["config", "--api", "http://me:hush@apollo:4200"], &[]);
    assert!(printed.contains("http://…@apollo:4200"), "{printed}");
}

#[test]
fn no_command_shows_the_signature_of_a_template() {
    for location in [
        "https://me:hush@localhost:1/job.yaml?X-Amz-Signature=hush",
        "s3://bucket/job.yaml?X-Amz-Signature=hush",
        "nowhere://me:hush@bucket/job.yaml?X-Amz-Signature=hush",
    ] {
        for command in ["config", "check"] {
            assert_hidden(&[command, "--job-template", location], &[]);
        }
        assert_hidden(
            &["render", "--run-config", "none", "--job-template", location],
            &[],
        );
    }
}

#[test]
fn the_value_of_a_variable_without_its_sign_is_not_shown() {
    for pair in [
        "TOKEN hush",
        "TOKEN: hush",
        "hush",
        "TOKEN\thush",
        "to hush",
    ] {
        for command in ["start", "config", "check", "render", "install"] {
            assert_hidden(&[command, "-e", pair], &[]);
        }
        let printed = assert_hidden(&["config", "-e", pair], &[]);
        assert!(printed.contains("NAME=VALUE"), "{printed}");
        assert_eq!(printed.contains("TOKEN"), pair.contains("TOKEN"));
    }
    // Without quotes, the shell makes two words of it.
    let printed = assert_hidden(&["start", "-e", "TOKEN", "hush"], &[]);
    assert!(printed.contains("unexpected argument"), "{printed}");
    for args in [
        ["start", "--keyy=hush", "-n"],
        ["start", "--key=a", "hush"],
        ["start", "--disable-job-deletion=hush", "-n"],
    ] {
        assert_hidden(&args, &[]);
    }
}

#[test]
fn a_value_of_any_length_and_content_is_one_row_of_the_settings() {
    let long = "x".repeat(70_000);
    for output in ["table", "json"] {
        let args = ["config", "-o", output, "--name", &long];
        let (code, printed) = run(&args, &[]);
        assert_eq!(code, Some(0), "{printed}");
        assert!(printed.contains(&long));
    }
    let (code, printed) = run(&["config", "--name", "a\nnamespace  forged"], &[]);
    assert_eq!(code, Some(0), "{printed}");
    let rows = printed.lines().filter(|row| row.starts_with("namespace "));
    assert_eq!(rows.count(), 1, "{printed}");
}

#[test]
fn a_variable_that_is_no_text_is_named_and_not_shown() {
    let value = OsStr::from_bytes(b"hush\xff");
    for variable in [
        "PREFECT__CLOUD__API_KEY",
        "NAMESPACE",
        "SERVICE_ACCOUNT_NAME",
        "KUBECONFIG",
        "JOB_VOLUMES",
        "https_proxy",
    ] {
        for command in ["start", "config", "install"] {
            let (code, printed) = run(&[command], &[(variable, value)]);
            assert_eq!(code, Some(1), "{printed}");
            assert!(printed.contains(variable), "{printed}");
            assert!(!printed.contains("hush"), "{printed}");
        }
    }
    assert_eq!(run(&["config"], &[("OTHER", value)]).0, Some(0));
}
