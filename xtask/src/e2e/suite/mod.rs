//! The tests: which there are, and how they are run side by side or one by one.

mod contract;
mod deploying;
mod ending;
mod failing;
mod footprint;
mod inside;
mod installing;
mod outages;
mod refused;
mod templates;
mod world;

use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use kube::Client;
use tokio::sync::Mutex;

use self::world::World;
use super::local;
use crate::interrupt::interrupted;

/// Tests that run at the same time: they mostly wait.
const CONCURRENCY: usize = 8;
/// How long one may take, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(180);

/// The cluster that is tested on, and what is tested.
pub(super) struct Target {
    /// A client with all rights.
    pub(super) client: Client,
    /// The same for the agent.
    pub(super) kubeconfig: PathBuf,
    /// `kubectl` and its first arguments.
    pub(super) kubectl: Vec<OsString>,
    /// The address of this process as pods see it.
    pub(super) host: String,
    /// The image of flows as the cluster knows it.
    pub(super) flow_image: String,
    /// The agent's image as the cluster knows it.
    pub(super) agent_image: String,
    /// The agent's binary.
    pub(super) agent: PathBuf,
    /// Where the servers of templates are installed.
    pub(super) stores: PathBuf,
    /// The testkit's contract tests, compiled, where the cluster is the one that they know.
    pub(super) contract: Option<PathBuf>,
    /// Where each test's course is written to.
    pub(super) logs: PathBuf,
    /// The cluster itself, when its parts may be killed.
    pub(super) local: Option<Mutex<local::Cluster>>,
}

type Run = fn(Arc<World>) -> BoxFuture<'static, Result<()>>;

/// A test.
pub(super) struct Test {
    module: &'static str,
    name: &'static str,
    alone: bool,
    run: Run,
}

impl Test {
    /// Its name, as a sentence.
    fn title(&self) -> String {
        format!("{}: {}", self.module, self.name.replace('_', " "))
    }
}

macro_rules! tests {
    ($alone:literal: $($module:ident::$name:ident,)*) => {
        [$(Test {
            module: stringify!($module),
            name: stringify!($name),
            alone: $alone,
            run: |world| Box::pin($module::$name(world)),
        }),*]
    };
}

/// All tests whose title contains the filter. Those that break the cluster come last.
pub(super) fn tests(filter: Option<&str>, local: bool) -> Vec<Test> {
    let together = tests![false:
        contract::the_testkit_was_recorded_from_a_cluster_like_this_one,
        ending::a_job_with_a_backoff_limit_reports_each_pod_and_fails_when_it_gives_up,
        deploying::a_container_sees_exactly_the_environment_that_render_promised,
        deploying::a_run_without_an_image_gets_that_of_its_prefect_version,
        deploying::init_containers_and_sidecars_run_beside_a_flow,
        deploying::a_suspended_job_waits_until_it_is_resumed,
        deploying::a_killed_agents_successor_finishes_its_work_and_tells_nothing_twice,
        inside::of_two_replicas_the_one_with_the_lease_supervises_until_it_is_killed,
        inside::the_agent_inside_deploys_into_another_namespace_and_tells_of_failures,
        inside::check_inside_the_agents_pod_finds_everything_in_order,
        inside::check_names_what_the_agents_account_may_not_do,
        inside::check_names_a_missing_namespace_service_account_and_api,
        inside::check_warns_of_pods_that_pod_security_refuses,
        inside::the_agents_account_may_do_what_is_listed_and_nothing_else,
        installing::what_install_prints_is_accepted_in_every_combination,
        installing::what_uninstall_prints_deletes_what_install_has_made,
        installing::install_can_be_applied_over_the_python_agent,
        templates::a_template_in_s3_is_used,
        templates::a_template_in_google_cloud_storage_is_used,
        failing::a_flow_that_exits_with_an_error_is_told_with_its_exit_code,
        failing::a_flow_that_is_killed_by_a_signal_is_told_so,
        failing::a_flow_that_takes_too_much_memory_is_told_so,
        failing::a_command_that_does_not_exist_is_told,
        failing::an_init_container_that_fails_fails_the_run,
        failing::an_image_that_does_not_exist_fails_the_run,
        failing::an_invalid_image_name_fails_the_run,
        failing::a_missing_secret_fails_the_run_after_its_grace,
        failing::a_pod_that_no_node_takes_fails_the_run_when_it_waits_too_long,
        refused::a_missing_service_account_fails_the_run_after_its_grace,
        refused::an_exhausted_quota_fails_the_run_after_its_grace,
        refused::a_quota_on_jobs_holds_a_run_up_until_there_is_room,
        refused::a_quota_on_jobs_that_stays_exhausted_fails_the_run_after_the_budget,
        refused::a_limit_range_that_refuses_the_pod_fails_the_run_after_its_grace,
        refused::a_policy_that_refuses_the_pod_fails_the_run_after_its_grace,
        refused::a_policy_that_refuses_the_job_fails_the_run_at_once,
        refused::a_job_that_the_api_server_finds_invalid_fails_the_run_at_once,
        ending::a_deadline_that_passes_fails_the_run,
        ending::a_job_that_kubernetes_deletes_after_its_end_was_told_in_full,
        ending::a_job_that_ends_well_and_goes_without_a_report_fails_its_run,
        ending::an_evicted_pod_is_told_and_replaced,
        ending::a_deleted_pod_is_replaced_and_the_run_goes_on,
        ending::a_deleted_job_fails_its_run,
        ending::the_job_of_a_cancelled_run_is_deleted,
    ];
    let alone = tests![true:
        footprint::the_agent_in_its_container_polls_at_once_and_is_small,
        outages::an_api_server_that_is_killed_and_comes_back_costs_no_run,
        outages::changes_that_etcd_has_forgotten_are_found_by_listing_again,
        outages::what_happens_under_a_dead_kubelet_is_told_when_it_is_back,
    ];
    // What was recorded is the answers of one version of Kubernetes.
    let together = together
        .into_iter()
        .filter(|test| local || test.module != "contract");
    let wanted = |test: &Test| filter.is_none_or(|filter| test.title().contains(filter));
    let alone = alone.into_iter().filter(|_| local);
    together.chain(alone).filter(wanted).collect()
}

/// Whether one of these needs the servers of templates.
pub(super) fn need_stores(tests: &[Test]) -> bool {
    tests.iter().any(|test| test.module == "templates")
}

/// Prints what there is.
pub(super) fn list(tests: &[Test]) {
    for test in tests {
        println!("{}", test.title());
    }
}

/// Runs the tests; an error when one of them failed.
pub(super) async fn run(target: Arc<Target>, tests: Vec<Test>) -> Result<()> {
    let began = Instant::now();
    let all = tests.len();
    let (alone, together): (Vec<Test>, Vec<Test>) = tests.into_iter().partition(|test| test.alone);
    let one = |test: Test| {
        let target = target.clone();
        async move { report(target, &test).await }
    };
    // Those that run when somebody stops this process end, and clean up; no others begin.
    let stopped = interrupted().map(drop).shared();
    let together = stream::iter(together)
        .take_until(stopped.clone())
        .map(one)
        .buffer_unordered(CONCURRENCY);
    let alone = stream::iter(alone).take_until(stopped).then(one);
    let reports = together.chain(alone);
    let passed: Vec<bool> = reports.filter_map(std::future::ready).collect().await;
    let failed = passed.iter().filter(|passed| !**passed).count();
    println!(
        "e2e: {} passed, {failed} failed in {:.0} s",
        passed.len() - failed,
        began.elapsed().as_secs_f64()
    );
    ensure!(failed == 0, "{failed} of {all} tests failed");
    ensure!(passed.len() == all, "interrupted");
    Ok(())
}

/// Runs a test and says how it went, unless somebody stops this process meanwhile.
async fn report(target: Arc<Target>, test: &Test) -> Option<bool> {
    let began = Instant::now();
    let stopped = interrupted();
    let world = match World::new(target).await {
        Ok(world) => Arc::new(world),
        Err(error) => {
            println!(
                "FAILED {}: there is nothing to test on: {error:#}",
                test.title()
            );
            return Some(false);
        }
    };
    let outcome = tokio::select! {
        outcome = outcome(test, world.clone()) => Some(outcome),
        _ = stopped => None,
    };
    if let Some(outcome) = &outcome {
        tell(&world, test, outcome, began.elapsed()).await;
    }
    if let Err(error) = world.clean_up().await {
        println!("what a test made is left: {error:#}");
    }
    outcome.map(|outcome| outcome.is_ok())
}

/// Runs a test to its end, or as long as it may take; one that has failed leaves the cluster running.
async fn outcome(test: &Test, world: Arc<World>) -> Result<()> {
    let run = async {
        world.begin().await?;
        (test.run)(world.clone()).await
    };
    let run = AssertUnwindSafe(run).catch_unwind();
    let outcome = match tokio::time::timeout(TIMEOUT, run).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(anyhow!("it panicked")),
        Err(_) => Err(anyhow!("it did not end within {TIMEOUT:?}")),
    };
    if let (Err(_), true, Some(local)) = (&outcome, test.alone, &world.target.local)
        && let Err(error) = local.lock().await.restore().await
    {
        println!("the cluster does not come up again: {error:#}");
    }
    outcome
}

/// Prints how a test went, and writes down what it was about.
async fn tell(world: &World, test: &Test, outcome: &Result<()>, took: Duration) {
    let took = took.as_secs_f64();
    let what = world.describe().await;
    let log = world.target.logs.join(format!("{}.txt", test.name));
    if let Err(error) = std::fs::write(&log, &what) {
        println!("{} cannot be written: {error}", log.display());
    }
    match outcome {
        Ok(()) => println!("ok     {} ({took:.0} s)", test.title()),
        Err(error) => {
            println!(
                "FAILED {} ({took:.0} s)\n    {error:#}\n{what}",
                test.title()
            );
        }
    }
}
