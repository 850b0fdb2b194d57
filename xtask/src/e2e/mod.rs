//! `cargo xtask e2e`: the agent on a real Kubernetes, with the testkit's Prefect API.

mod binaries;
mod images;
mod kind;
mod local;
mod suite;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use agent_testkit::stores::Stores;
use anyhow::{Context, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub(crate) use self::binaries::kubernetes;
use self::images::Images;
pub(crate) use self::local::ControlPlane;
pub(crate) use self::local::sandbox::{self, Sandbox};
use self::suite::Target;
use crate::image::Image;
use crate::interrupt::{interrupted, unless_interrupted};

/// The flags of the end-to-end tests.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask e2e                            all tests, on kind or on a cluster of our own
  cargo xtask e2e --cluster local 'quota'    the tests whose name contains a text
  cargo xtask e2e --dry-run                  the commands that would be run with kind
  cargo xtask e2e --save-images images       what the nodes of a cluster of yours need for
  cargo xtask e2e --cluster current --host 10.0.0.5 --flow-image NAME:TAG --agent-image NAME:TAG")]
pub(crate) struct Options {
    /// Only the tests whose name contains this
    filter: Option<String>,
    /// Which cluster [default: kind if it and a container engine answer, else local]
    #[arg(long, value_enum)]
    cluster: Option<Place>,
    /// Test the release build instead of a debug build
    #[arg(long)]
    release: bool,
    /// Leave the cluster up after the tests: local until Ctrl-C, kind until somebody deletes it
    #[arg(long)]
    keep: bool,
    /// Use the kubeconfig's context without asking
    #[arg(long)]
    yes: bool,
    /// Print the commands for kind and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the names of the tests
    #[arg(long)]
    list: bool,
    /// Write the images of flows and of the agent into this folder, for the nodes of the current context
    #[arg(long, value_name = "FOLDER")]
    save_images: Option<PathBuf>,
    /// The address of this machine as pods see it [default: known for local and kind]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// The image of flows, where the nodes of the current context find it
    #[arg(long, value_name = "NAME:TAG")]
    flow_image: Option<String>,
    /// The image of the agent, where the nodes of the current context find it
    #[arg(long, value_name = "NAME:TAG")]
    agent_image: Option<String>,
    /// What to do inside the namespaces of a local cluster
    #[arg(long, hide = true, value_name = "FILE")]
    inside: Option<PathBuf>,
}

impl Options {
    /// Which build of the agent is tested.
    fn profile(&self) -> crate::Profile {
        if self.release {
            crate::Profile::Release
        } else {
            crate::Profile::Debug
        }
    }
}

/// Where the tests run.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// A cluster in a container, made with `kind`
    Kind,
    /// A cluster of upstream parts in namespaces of this machine; needs Linux and root
    Local,
    /// The current context of the kubeconfig, in namespaces of the tests' own
    Current,
}

/// What the process inside the namespaces of a local cluster has to know.
#[derive(Serialize, Deserialize)]
struct Plan {
    cluster: PathBuf,
    logs: PathBuf,
    cgroup: String,
    kubernetes: PathBuf,
    images: Vec<PathBuf>,
    agent: PathBuf,
    stores: PathBuf,
    contract: PathBuf,
    filter: Option<String>,
    keep: bool,
}

/// Runs the tests.
pub(crate) async fn run(options: Options) -> Result<()> {
    // The testkit, kube and the agent's crates use the same one.
    if let Some(plan) = &options.inside {
        let text = std::fs::read(plan)?;
        return inside(serde_json::from_slice(&text)?).await;
    }
    if let Some(folder) = &options.save_images {
        let agent = crate::build_agent(options.profile())?;
        return save_images(folder, &agent);
    }
    if options.dry_run {
        kind::dry_run();
        return Ok(());
    }
    let kind = match options.cluster {
        Some(kind) => kind,
        None if kind::answers() => Place::Kind,
        None => Place::Local,
    };
    let tests = suite::tests(options.filter.as_deref(), kind == Place::Local);
    if options.list {
        suite::list(&tests);
        return Ok(());
    }
    ensure!(!tests.is_empty(), "no test has such a name; see --list");
    match kind {
        Place::Local => outside(options, &tests).await,
        Place::Kind => kind::run(&options, tests).await,
        Place::Current => current(&options, tests).await,
    }
}

/// Writes the images that nodes need, and says what they are called.
fn save_images(folder: &Path, agent: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let [flow, own] = archives(folder);
    crate::image::save(&Images::assemble()?.flow, &[images::FLOW], &flow)?;
    crate::image::save(&crate::image::agent(agent)?, &[crate::image::NAME], &own)?;
    println!("{} has the image {}", flow.display(), images::FLOW);
    println!("{} has the image {}", own.display(), crate::image::NAME);
    Ok(())
}

/// The archives of the images of flows and of the agent.
fn archives(folder: &Path) -> [PathBuf; 2] {
    ["flow.tar", "agent.tar"].map(|name| folder.join(name))
}

/// Builds everything, then goes on inside namespaces of its own.
async fn outside(options: Options, tests: &[suite::Test]) -> Result<()> {
    // What may be missing shows before the long builds.
    sandbox::check()?;
    let images = Images::assemble()?;
    let agent = crate::build_agent(options.profile())?;
    let stores = stores(&agent);
    if suite::need_stores(tests) {
        // There is no way out of the namespaces.
        Stores::install(&stores)?;
    }
    let kubernetes = kubernetes()?;
    let contract = crate::build_test("api")?;
    let logs = logs(&agent)?;
    let all = async {
        let sandbox = Sandbox::new()?;
        let plan = Plan {
            cluster: sandbox.cluster(),
            logs: logs.clone(),
            cgroup: sandbox.cgroup(),
            kubernetes,
            images: save_all(&images, &agent, sandbox.folder())?,
            agent,
            stores,
            contract,
            filter: options.filter,
            keep: options.keep,
        };
        let file = sandbox.folder().join("plan.json");
        std::fs::write(&file, serde_json::to_vec(&plan)?)?;
        let file = file.to_str().context("a path that is no text")?;
        let program = std::env::current_exe()?;
        sandbox.run(&program, &["e2e", "--inside", file]).await
    };
    let status = unless_interrupted(all).await?;
    ensure!(
        status.success(),
        "the tests failed; the logs of the cluster's programs are in {}",
        logs.display()
    );
    Ok(())
}

/// Writes the images of a local cluster into a folder; their archives.
fn save_all(images: &Images, agent: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let own = crate::image::agent(agent)?;
    let images: [(&str, &Image, &[&str]); 3] = [
        ("pause.tar", &images.pause, &[images::PAUSE]),
        ("flow.tar", &images.flow, &[images::FLOW, images::DEFAULT]),
        ("agent.tar", &own, &[crate::image::NAME]),
    ];
    let saved = images.map(|(file, image, names)| {
        let path = folder.join(file);
        crate::image::save(image, names, &path).map(|()| path)
    });
    saved.into_iter().collect()
}

/// The folder for the servers of templates: that of the tests of templates, too.
fn stores(agent: &Path) -> PathBuf {
    let target = agent.ancestors().nth(2).unwrap_or(agent);
    target.join("tmp/template-servers")
}

/// An empty folder for logs, beside the agent's binary.
fn logs(agent: &Path) -> Result<PathBuf> {
    let logs = agent.with_file_name("e2e-logs");
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    std::fs::create_dir_all(&logs)?;
    Ok(logs)
}

/// Brings the cluster up and runs the tests.
async fn inside(plan: Plan) -> Result<()> {
    let began = Instant::now();
    let cluster = local::Cluster::start(
        &plan.cluster,
        &plan.logs,
        &plan.kubernetes,
        &plan.cgroup,
        &plan.images,
    )
    .await?;
    let kubeconfig = cluster.kubeconfig();
    let client = client(&kubeconfig).await?;
    let version = client.apiserver_version().await?.git_version;
    println!(
        "Kubernetes {version} is up after {:.0} s",
        began.elapsed().as_secs_f64()
    );
    let kubernetes = plan.kubernetes.clone();
    let target = Target {
        client,
        kubeconfig: kubeconfig.clone(),
        host: cluster.host().to_owned(),
        kubectl: vec![plan.kubernetes.into(), "kubectl".into()],
        flow_image: images::FLOW.to_owned(),
        agent_image: crate::image::NAME.to_owned(),
        agent: plan.agent,
        stores: plan.stores,
        contract: Some(plan.contract),
        logs: plan.logs,
        local: Some(Mutex::new(cluster)),
    };
    let target = Arc::new(target);
    let tests = suite::tests(plan.filter.as_deref(), true);
    let outcome = suite::run(target.clone(), tests).await;
    if plan.keep {
        println!(
            "The cluster stays up until Ctrl-C. To look around:\n  nsenter --all --target {} {} kubectl --kubeconfig {} get pods --all-namespaces",
            std::env::var("FIRST_PROCESS").context("the namespaces tell no process")?,
            kubernetes.display(),
            kubeconfig.display(),
        );
        interrupted().await?;
    }
    outcome
}

/// A client for a kubeconfig.
async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Runs the tests in the kubeconfig's current context.
async fn current(options: &Options, tests: Vec<suite::Test>) -> Result<()> {
    let kubeconfig = kubeconfig_path()?;
    let read = Kubeconfig::read_from(&kubeconfig)?;
    let context = read.current_context.as_deref().unwrap_or("(none)");
    let missing = "with --cluster current, say";
    let host = options.host.clone();
    let host = host.with_context(|| {
        format!("{missing} --host, the address of this machine that pods can reach")
    })?;
    let flow_image = options.flow_image.clone().with_context(|| {
        format!("{missing} --flow-image, the name of an image that --save-images makes")
    })?;
    let agent_image = options.agent_image.clone().with_context(|| {
        format!("{missing} --agent-image, the name of an image that --save-images makes")
    })?;
    if !options.yes {
        ask(&format!(
            "Run {} tests in namespaces e2e-... of the context {context}?",
            tests.len()
        ))?;
    }
    let agent = crate::build_agent(options.profile())?;
    let target = Target {
        client: client(&kubeconfig).await?,
        kubeconfig,
        host,
        kubectl: kubectl()?,
        flow_image,
        agent_image,
        stores: stores(&agent),
        logs: logs(&agent)?,
        agent,
        contract: None,
        local: None,
    };
    suite::run(Arc::new(target), tests).await
}

/// How `kubectl` is called where it does not come with the cluster.
fn kubectl() -> Result<Vec<OsString>> {
    ensure!(
        sandbox::is_on_path("kubectl"),
        "the tests call kubectl, which is not on the PATH; install it (https://kubernetes.io/docs/tasks/tools)"
    );
    Ok(vec!["kubectl".into()])
}

/// The kubeconfig that the environment names.
pub(crate) fn kubeconfig_path() -> Result<PathBuf> {
    let named = std::env::var_os("KUBECONFIG").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    let path = named
        .or(home)
        .context("neither KUBECONFIG nor HOME is set")?;
    ensure!(path.exists(), "there is no kubeconfig {}", path.display());
    Ok(path)
}

/// Goes on only if a person says yes.
fn ask(question: &str) -> Result<()> {
    ensure!(
        std::io::stdin().is_terminal(),
        "nobody can be asked here; say --yes"
    );
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("not run"),
    }
}
