//! The contract: what a real Kubernetes answered, word for word, recorded in the `.json` files
//! beside this one, and asked again of the testkit. With `CONTRACT_KUBECONFIG` set, the cluster
//! that it names is asked instead, in a namespace of its own; `cargo xtask e2e` does that. With
//! `CONTRACT_RECORD` set too, its answers become the recorded ones.

mod scenarios;
mod server;

use std::path::PathBuf;

use serde_json::Value;

use self::server::Server;

/// Plays a scenario and compares what was answered with what was recorded, step by step.
async fn holds(name: &str, scenario: impl AsyncFnOnce(&mut Server)) {
    let mut server = Server::start().await;
    scenario(&mut server).await;
    let steps = server.finish().await;
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/api/contract")
        .join(format!("{name}.json"));
    if std::env::var_os("CONTRACT_RECORD").is_some() {
        let text = serde_json::to_string_pretty(&steps).expect("JSON");
        std::fs::write(&file, text + "\n").expect("the record can be written");
        return;
    }
    let recorded = std::fs::read_to_string(&file).expect("a record");
    let recorded: Vec<Value> = serde_json::from_str(&recorded).expect("JSON");
    let mut different = Vec::new();
    for (now, then) in steps.iter().zip(&recorded) {
        if now != then {
            differences(&now["step"].to_string(), now, then, &mut different);
        }
    }
    assert!(
        different.is_empty() && steps.len() == recorded.len(),
        "{} of {} steps, {} differences (here / recorded):\n{}",
        steps.len(),
        recorded.len(),
        different.len(),
        different.join("\n")
    );
}

/// Lists where two values differ.
fn differences(path: &str, now: &Value, then: &Value, found: &mut Vec<String>) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            let names = now
                .keys()
                .chain(then.keys().filter(|k| !now.contains_key(*k)));
            for name in names {
                let (now, then) = (now.get(name), then.get(name));
                let null = Value::Null;
                differences(
                    &format!("{path}.{name}"),
                    now.unwrap_or(&null),
                    then.unwrap_or(&null),
                    found,
                );
            }
        }
        (Value::Array(now), Value::Array(then)) if now.len() == then.len() => {
            for (index, (now, then)) in now.iter().zip(then).enumerate() {
                differences(&format!("{path}[{index}]"), now, then, found);
            }
        }
        _ if now == then => {}
        _ => found.push(format!("{path}:\n    {now}\n    {then}")),
    }
}

macro_rules! contracts {
    ($($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                holds(stringify!($name), scenarios::$name).await;
            }
        )*
    };
}

contracts! {
    creating
    refusing
    patching
    listing
    deleting
    watching
    leasing
    succeeding
    failing
    backing_off
}
