//! Embeds the agent in a service: a home-made source hands out three runs, a home-made backend
//! "runs" them by printing. `cargo run -p agent-core --example embed`
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_core::{
    Agent, Claim, FlowRun, FlowRunId, FlowRunSource, JobBackend, JobRef, LogEntry, Ready,
    ReadyQuery, Registration, Result, State, Submission, Work, async_trait,
};

#[rustfmt::skip]
struct Queue(Mutex<Vec<FlowRun>>);

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
        Ok(Claim::Claimed)
    }
    async fn fail(&self, run: &FlowRunId, message: &str) -> Result<()> { println!("{run} failed: {message}"); Ok(()) }
    async fn write_logs(&self, entries: &[LogEntry]) -> Result<()> {
        for entry in entries { println!("log of {}: {}", entry.flow_run_id, entry.message); }
        Ok(())
    }
    async fn states(&self, _: &[FlowRunId]) -> Result<HashMap<FlowRunId, State>> { Ok(HashMap::new()) }
    async fn claimed(&self, _: Duration) -> Result<Vec<FlowRun>> { Ok(Vec::new()) }
}

struct Printer;

#[async_trait]
#[rustfmt::skip]
impl JobBackend for Printer {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        println!("running {}", run.name);
        Ok(Submission { job: format!("job-of-{}", run.id), created: true })
    }
    async fn jobs(&self, _: &FlowRun) -> Result<Vec<JobRef>> { Ok(Vec::new()) }
}

#[tokio::main]
async fn main() -> Result<()> {
    let work = || Work::Flow(Box::default());
    let runs = ["one", "two", "three"].map(|id| FlowRun::new(id, id, work()));
    let source = Arc::new(Queue(Mutex::new(runs.to_vec())));
    let agent = Agent::builder(source, Arc::new(Printer))
        .max_polls(Some(3))
        .build();
    agent.run(std::future::pending()).await
}
