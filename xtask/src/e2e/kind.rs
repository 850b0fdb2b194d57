//! A cluster made with `kind`: which commands make it, fill it and delete it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::images;
use super::local::sandbox::is_on_path;
use super::suite::{self, Target, Test};
use super::{Options, client};
use crate::interrupt::unless_interrupted;

/// What the cluster's name begins with; the process follows, so that it is nobody else's.
const PREFIX: &str = "prefect-agent-e2e";
/// The variable that tells `kind` which container engine to use. Without it, it takes docker wherever
/// there is such a program, even where no engine answers it but podman's does.
const PROVIDER: &str = "KIND_EXPERIMENTAL_PROVIDER";
const ENGINES: [&str; 3] = ["docker", "nerdctl", "podman"];

/// Whether `kind` is there, and a container engine that answers.
pub(super) fn answers() -> bool {
    is_on_path("kind") && engine().is_some()
}

/// The container engine that answers; only that one is asked that the person wants to use.
fn engine() -> Option<&'static str> {
    let wanted = std::env::var(PROVIDER).ok();
    let engines = ENGINES
        .into_iter()
        .filter(|engine| wanted.as_deref().is_none_or(|wanted| wanted == *engine));
    engines.into_iter().find(|engine| {
        let mut ask = Command::new(engine);
        ask.arg("info").stdin(Stdio::null());
        ask.stdout(Stdio::null()).stderr(Stdio::null());
        ask.status().is_ok_and(|status| status.success())
    })
}

/// The commands for one cluster.
struct Kind {
    name: String,
    engine: &'static str,
    kubeconfig: PathBuf,
    archives: [PathBuf; 2],
}

impl Kind {
    /// Those for a cluster of this name, with these files in a folder.
    fn new(name: String, engine: &'static str, folder: &Path) -> Self {
        Self {
            name,
            engine,
            kubeconfig: folder.join("kubeconfig"),
            archives: super::archives(folder),
        }
    }

    fn create(&self) -> Vec<String> {
        let mut command = self.kind("create cluster --wait 180s --kubeconfig");
        command.push(self.kubeconfig.display().to_string());
        command
    }

    fn load(&self) -> [Vec<String>; 2] {
        self.archives.each_ref().map(|archive| {
            let mut command = self.kind("load image-archive");
            command.push(archive.display().to_string());
            command
        })
    }

    /// Prints the gateways of the network that kind's nodes are in: addresses of this machine.
    fn gateways(&self) -> Vec<String> {
        let format = match self.engine {
            "podman" => "{{range .Subnets}}{{.Gateway}} {{end}}",
            _ => "{{range .IPAM.Config}}{{.Gateway}} {{end}}",
        };
        let mut command = words(&format!("{} network inspect kind --format", self.engine));
        command.push(format.to_owned());
        command
    }

    /// All of them, in the order in which they are run.
    fn commands(&self) -> [Vec<String>; 5] {
        let [flow, own] = self.load();
        [self.create(), flow, own, self.gateways(), self.delete()]
    }

    fn delete(&self) -> Vec<String> {
        let mut command = self.kind("delete cluster --kubeconfig");
        command.push(self.kubeconfig.display().to_string());
        command
    }

    /// A command of two words, and what comes behind the cluster's name.
    fn kind(&self, command: &str) -> Vec<String> {
        let mut words = words(&format!("env {PROVIDER}={} kind {command}", self.engine));
        words.splice(5..5, ["--name".to_owned(), self.name.clone()]);
        words
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Prints the commands that [`run`] runs around the tests.
pub(super) fn dry_run() {
    let folder = Path::new("images");
    let kind = Kind::new(PREFIX.to_owned(), engine().unwrap_or("docker"), folder);
    println!("cargo xtask e2e --save-images {}", folder.display());
    for command in kind.commands() {
        println!("{}", shown(&command));
    }
}

/// Makes a cluster, runs the tests, deletes the cluster.
pub(super) async fn run(options: &Options, tests: Vec<Test>) -> Result<()> {
    let engine = engine().filter(|_| is_on_path("kind")).context(
        "kind needs the program kind and a container engine that answers; try --cluster local",
    )?;
    super::kubectl()?;
    let folder = tempfile::tempdir()?;
    let name = format!("{PREFIX}-{}", std::process::id());
    let kind = Kind::new(name, engine, folder.path());
    let agent = crate::build_agent(options.profile())?;
    super::save_images(folder.path(), &agent)?;
    let outcome = unless_interrupted(test(options, &kind, agent, tests)).await;
    if options.keep {
        println!(
            "The cluster stays. Its kubeconfig: {}\nTo delete it: {}",
            shown(&kind.kind("get kubeconfig")),
            shown(&kind.kind("delete cluster"))
        );
        return outcome;
    }
    let deleted = execute(&kind.delete());
    outcome.and(deleted.map(drop))
}

async fn test(options: &Options, kind: &Kind, agent: PathBuf, tests: Vec<Test>) -> Result<()> {
    execute(&kind.create())?;
    for command in kind.load() {
        execute(&command)?;
    }
    let host = match &options.host {
        Some(host) => host.clone(),
        None => gateway(&execute(&kind.gateways())?)
            .context("the network kind has no IPv4 gateway; say --host")?,
    };
    let target = Target {
        client: client(&kind.kubeconfig).await?,
        kubeconfig: kind.kubeconfig.clone(),
        host,
        kubectl: super::kubectl()?,
        flow_image: images::FLOW.to_owned(),
        agent_image: crate::image::NAME.to_owned(),
        stores: super::stores(&agent),
        logs: super::logs(&agent)?,
        agent,
        contract: None,
        local: None,
    };
    suite::run(Arc::new(target), tests).await
}

/// The first address of version 4.
fn gateway(printed: &str) -> Option<String> {
    let mut addresses = printed.split_whitespace();
    let found = addresses.find(|address| address.parse::<std::net::Ipv4Addr>().is_ok());
    found.map(str::to_owned)
}

/// Runs a command and shows what it says; what it printed.
fn execute(command: &[String]) -> Result<String> {
    println!("$ {}", shown(command));
    let (program, args) = command.split_first().context("an empty command")?;
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{} failed", shown(command));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as a person types it.
fn shown(command: &[String]) -> String {
    let quoted = command.iter().map(|word| match word.contains([' ', '{']) {
        true => format!("'{word}'"),
        false => word.clone(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_of_kinds_documentation() {
        let kind = Kind::new("e2e-7".to_owned(), "docker", Path::new("/tmp"));
        assert_eq!(
            kind.commands().map(|one| shown(&one)),
            [
                "env KIND_EXPERIMENTAL_PROVIDER=docker kind create cluster --name e2e-7 --wait 180s --kubeconfig /tmp/kubeconfig",
                "env KIND_EXPERIMENTAL_PROVIDER=docker kind load image-archive --name e2e-7 /tmp/flow.tar",
                "env KIND_EXPERIMENTAL_PROVIDER=docker kind load image-archive --name e2e-7 /tmp/agent.tar",
                "docker network inspect kind --format '{{range .IPAM.Config}}{{.Gateway}} {{end}}'",
                "env KIND_EXPERIMENTAL_PROVIDER=docker kind delete cluster --name e2e-7 --kubeconfig /tmp/kubeconfig",
            ]
        );
    }

    #[test]
    fn pods_reach_this_machine_at_the_gateway_of_version_4() {
        assert_eq!(
            gateway("fc00:f853:ccd:e793::1 172.18.0.1 \n").as_deref(),
            Some("172.18.0.1")
        );
        assert_eq!(gateway("fc00::1"), None);
    }
}
