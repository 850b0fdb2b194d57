//! Embeds the agent in a service: a home-made source hands out three runs, a home-made backend
//! "runs" them by printing. `cargo run -p agent-core --example embed`
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_core::{
    Agent, Claim, FlowRun, FlowRunId, FlowRunSource, JobBackend, JobRef, LogEntry, Ready,
    ReadyQuery, Registration, Result, State, Submission, Work, async_trait,
};

struct Queue(Mutex<Vec<FlowRun>>, Mutex<Vec<FlowRun>>); // queued, claimed

#[async_trait]
#[rustfmt::skip]
impl FlowRunSource for Queue {
    async fn register(&self) -> Result<Registration> { Ok(Registration::default()) }
    async fn ready(&self, query: ReadyQuery<'_>) -> Result<Ready> {
        let mut runs = self.0.lock().expect("no panics").clone();
        runs.retain(|run| !query.known.contains(&run.id));
        Ok(Ready { queued: runs.len(), runs })
    }
    async fn reread(&self, run: &FlowRun) -> Result<Option<FlowRun>> { Ok(Some(run.clone())) }
    async fn claim(&self, run: &FlowRun) -> Result<Claim> {
        self.0.lock().expect("no panics").retain(|queued| queued.id != run.id);
        self.1.lock().expect("no panics").push(run.clone());
        Ok(Claim::Claimed)
    }
    async fn fail(&self, run: &FlowRunId, message: &str) -> Result<()> { println!("{run} failed: {message}"); Ok(()) }
    async fn write_logs(&self, entries: &[LogEntry]) -> Result<()> {
        entries.iter().for_each(|entry| println!("log of {}: {}", entry.flow_run_id, entry.message));
        Ok(())
    }
    async fn states(&self, _: &[FlowRunId]) -> Result<HashMap<FlowRunId, State>> { Ok(HashMap::new()) }
    async fn claimed(&self, _: Duration) -> Result<Vec<FlowRunId>> { Ok(Vec::new()) }
    async fn claimed_runs(&self, runs: &[FlowRunId]) -> Result<Vec<FlowRun>> {
        Ok(self.1.lock().expect("no panics").iter().filter(|run| runs.contains(&run.id)).cloned().collect())
    }
}

struct Printer;

#[async_trait]
#[rustfmt::skip]
impl JobBackend for Printer {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        println!("running {}", run.name);
        Ok(Submission { job: format!("job-of-{}", run.id), created: true })
    }
    async fn jobs(&self, _: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> { Ok(HashMap::new()) }
}

#[tokio::main]
async fn main() -> Result<()> {
    let runs = ["one", "two", "three"].map(|id| FlowRun::new(id, id, Work::Flow(Box::default())));
    let source = Arc::new(Queue(runs.to_vec().into(), Mutex::default()));
    let builder = Agent::builder(source, Arc::new(Printer)).max_polls(Some(3));
    builder.build().run(std::future::pending()).await
}
