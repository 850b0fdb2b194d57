//! `cargo xtask demo`: a colourful set of flow runs, the real binary, and a table of what happens.

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stdout};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_testkit::{Course, FlowRunSeed, KubernetesApi, PodEnd, PrefectApi};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::agent;
use crate::interrupt::{interrupted, unless_interrupted};

/// How long the runs may take all together, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The flags of the demo.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Stay up after the last run has finished, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// One run of the demo: what it asks for, what its pod does, how it must end.
struct Play {
    name: &'static str,
    about: &'static str,
    seed: FlowRunSeed,
    course: Course,
    ends: &'static str,
}

fn plays() -> Vec<Play> {
    let now = Timestamp::now();
    let seconds = |s| Duration::from_millis((s * 1000.0) as u64);
    let kubernetes = |members: Value| {
        let mut config = json!({"type": "KubernetesRun"});
        if let (Some(config), Value::Object(members)) = (config.as_object_mut(), members) {
            config.extend(members);
        }
        FlowRunSeed::new().run_config(config)
    };
    let play = |name, about, seed: FlowRunSeed, course, ends| Play {
        name,
        about,
        seed: seed.name(name),
        course,
        ends,
    };
    let template = "\
apiVersion: batch/v1
kind: Job
metadata:
  name: nightly
spec:
  template:
    spec:
      tolerations:
      - {key: flows, operator: Exists}
      containers:
      - name: flow
";
    let once = "\
apiVersion: batch/v1
kind: Job
spec:
  backoffLimit: 0
  template:
    spec:
      containers:
      - name: flow
";
    let (two, three) = (seconds(2.0), seconds(3.0));
    let none = || json!({});
    let universal = json!({"type": "UniversalRun", "env": {"STAGE": "demo"}});
    let large = json!({
        "image": "registry.example/etl:7", "cpu_request": "500m", "memory_limit": "2Gi"
    });
    let boxed = json!({
        "type": "Docker", "registry_url": "registry.example", "image_name": "flows", "image_tag": "2"
    });
    vec![
        play(
            "plain-otter",
            "all defaults",
            kubernetes(none()),
            Course::succeeds_after(seconds(1.0)),
            "Success",
        ),
        play(
            "any-heron",
            "a UniversalRun",
            FlowRunSeed::new().run_config(universal),
            Course::succeeds_after(two),
            "Success",
        ),
        play(
            "large-bison",
            "own image and resources",
            kubernetes(large),
            Course::succeeds_after(three),
            "Success",
        ),
        play(
            "night-owl",
            "a job template of its own",
            kubernetes(json!({"job_template": template})),
            Course::succeeds_after(seconds(1.5)),
            "Success",
        ),
        play(
            "boxed-crab",
            "code in a Docker image",
            kubernetes(none()).storage(boxed),
            Course::succeeds_after(seconds(2.5)),
            "Success",
        ),
        play(
            "later-snail",
            "due in 5 s",
            kubernetes(none()).start_time(now + SignedDuration::from_secs(5)),
            Course::succeeds_after(seconds(1.0)),
            "Success",
        ),
        play(
            "sad-panda",
            "its process exits with 1",
            kubernetes(json!({"job_template": once})),
            Course::exits_with(1, two),
            "Failed",
        ),
        play(
            "lost-whale",
            "a run config for another agent",
            FlowRunSeed::new().run_config(json!({"type": "DockerRun", "image": "x"})),
            Course::hangs(),
            "Failed",
        ),
    ]
}

/// Runs the demo.
pub(crate) async fn run(options: Options) -> Result<()> {
    println!("Building agent-cli...");
    let binary = crate::build_agent(crate::Profile::Debug)?;
    let prefect = Arc::new(PrefectApi::start().await?);
    let mut courses = HashMap::new();
    let mut runs = Vec::new();
    for play in plays() {
        let id = prefect.seed(play.seed.clone());
        courses.insert(id.to_string(), play.course.clone());
        runs.push((id, play));
    }
    let kubernetes = cluster(prefect.clone(), courses).await?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, kubernetes.kubeconfig_yaml())?;
    println!("Prefect API     {}", prefect.url());
    println!("Kubernetes API  {}", kubernetes.url());
    println!(
        "Look around     kubectl --kubeconfig {} get jobs,pods,events\n",
        kubeconfig.display()
    );

    let log = dir.path().join("agent.log");
    let mut call = agent::start(&binary, &prefect.url(), &kubeconfig);
    let mut agent = agent::spawn(&mut call, &log)?;
    let showing = show(&prefect, &kubernetes, &runs, &mut agent);
    let shown = unless_interrupted(showing).await;
    if shown.is_err() {
        eprintln!(
            "The agent said:\n{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
    }
    shown?;
    if options.keep {
        println!("\nStaying up; Ctrl-C ends it.");
        interrupted().await?;
    }
    stop(&mut agent).await?;
    summary(&prefect, &kubernetes, &runs)
}

/// A cluster whose pods play their courses and report to the Prefect API as a flow would.
async fn cluster(
    prefect: Arc<PrefectApi>,
    courses: HashMap<String, Course>,
) -> Result<KubernetesApi> {
    let of = |labels: Option<&str>| labels.and_then(|id| id.parse::<Uuid>().ok());
    let started = prefect.clone();
    let kubernetes = KubernetesApi::builder()
        .course(move |attempt| {
            let course = attempt.flow_run_id().and_then(|id| courses.get(id));
            course.cloned().unwrap_or_else(Course::hangs)
        })
        .on_pod_started(move |attempt| {
            if let Some(id) = of(attempt.flow_run_id()) {
                started.set_state_named(id, "Running", "Running flow.");
            }
        })
        .on_pod_finished(move |attempt, end| {
            if let Some(id) = of(attempt.flow_run_id()) {
                match end {
                    PodEnd::Succeeded => {
                        prefect.set_state_named(id, "Success", "All reference tasks succeeded.")
                    }
                    _ => prefect.set_state_named(id, "Failed", "Some reference tasks failed."),
                }
            }
        });
    Ok(kubernetes.start().await?)
}

/// Shows what happens until all runs have finished.
async fn show(
    prefect: &PrefectApi,
    kubernetes: &KubernetesApi,
    runs: &[(Uuid, Play)],
    agent: &mut Child,
) -> Result<()> {
    let began = Instant::now();
    let mut screen = Screen::default();
    let mut changes = (prefect.changed(), kubernetes.changed());
    loop {
        screen.draw(prefect, kubernetes, runs)?;
        let finished = |id: &Uuid| prefect.run(*id).is_some_and(|run| run.is_finished());
        if runs.iter().all(|(id, _)| finished(id)) {
            return Ok(());
        }
        if let Some(status) = agent.try_wait()? {
            bail!("the agent has ended by itself: {status}");
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "the runs have not finished within {PATIENCE:?}"
        );
        // Ages move on even when nothing changes.
        let next = Duration::from_millis(500);
        let _ = tokio::time::timeout(next, async {
            tokio::select! {
                _ = changes.0.changed() => {}
                _ = changes.1.changed() => {}
            }
        })
        .await;
    }
}

/// A table that is drawn over itself on a terminal; elsewhere a line for each change.
#[derive(Default)]
struct Screen {
    lines: usize,
    told: Mutex<HashMap<Uuid, String>>,
}

impl Screen {
    fn draw(
        &mut self,
        prefect: &PrefectApi,
        kubernetes: &KubernetesApi,
        runs: &[(Uuid, Play)],
    ) -> Result<()> {
        if !stdout().is_terminal() {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, play) in runs {
                let [state, job, pod, _] = columns(prefect, kubernetes, *id);
                let line = format!("{:<12} {state:<10} job {job:<24} pod {pod}", play.name);
                if told.insert(*id, line.clone()).as_ref() != Some(&line) {
                    println!("{line}");
                }
            }
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["run", "what", "state", "Job", "pod", "age"]);
        for (id, play) in runs {
            let [state, job, pod, age] = columns(prefect, kubernetes, *id);
            table.add_row([
                play.name.to_owned(),
                play.about.to_owned(),
                state,
                job,
                pod,
                age,
            ]);
        }
        let text = table.to_string();
        let mut out = stdout().lock();
        if self.lines > 0 {
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        writeln!(out, "{text}")?;
        out.flush()?;
        self.lines = text.lines().count();
        Ok(())
    }
}

/// State, Job, pod and age of the Job.
fn columns(prefect: &PrefectApi, kubernetes: &KubernetesApi, id: Uuid) -> [String; 4] {
    let state = prefect.state(id).unwrap_or_default();
    let label = id.to_string();
    let of_run = |labels: &Option<std::collections::BTreeMap<String, String>>| {
        labels
            .as_ref()
            .and_then(|labels| labels.get("prefect.io/flow_run_id"))
            == Some(&label)
    };
    let job = kubernetes
        .jobs()
        .into_iter()
        .find(|job| of_run(&job.metadata.labels));
    let pod = kubernetes
        .pods()
        .into_iter()
        .find(|pod| of_run(&pod.metadata.labels));
    let made = kubernetes
        .creations()
        .into_iter()
        .find(|made| made.flow_run_id() == Some(label.as_str()));
    let dash = || "-".to_owned();
    [
        state,
        job.and_then(|job| job.metadata.name).unwrap_or_else(dash),
        pod.and_then(|pod| pod.status?.phase).unwrap_or_else(dash),
        made.map_or_else(dash, |made| {
            format!("{} s", made.instant.elapsed().as_secs())
        }),
    ]
}

async fn stop(agent: &mut Child) -> Result<()> {
    let pid = agent.id().context("the agent has ended by itself")?;
    let told = Command::new("kill").arg(pid.to_string()).status().await?;
    ensure!(told.success(), "the agent could not be told to stop");
    let ended = tokio::time::timeout(Duration::from_secs(30), agent.wait()).await;
    let status = ended.context("the agent did not stop")??;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}

/// Says how each run ended; an error when one ended otherwise than planned.
fn summary(prefect: &PrefectApi, kubernetes: &KubernetesApi, runs: &[(Uuid, Play)]) -> Result<()> {
    println!("\nHow they ended:");
    let mut surprises = 0;
    for (id, play) in runs {
        let run = prefect.run(*id).context("a seeded run is gone")?;
        let fine = run.state == play.ends;
        surprises += usize::from(!fine);
        let mark = if fine { "ok " } else { "BAD" };
        println!(
            "  {mark} {:<12} {:<31} {:<8} {}",
            play.name,
            play.about,
            run.state,
            run.message()
        );
    }
    let jobs = kubernetes.creations_by_run();
    let doubled = jobs.values().filter(|count| **count != 1).count();
    println!(
        "{} runs, {} Jobs, {} doubled",
        runs.len(),
        jobs.len(),
        doubled
    );
    ensure!(
        surprises == 0 && doubled == 0,
        "{surprises} run(s) ended otherwise than planned"
    );
    Ok(())
}
