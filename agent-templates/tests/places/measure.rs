//! A measurement: how long loads take, and what a thousand of them cost the server. Run it with
//! `cargo test -p agent-templates --test places -- --ignored measure`.

use std::time::{Duration, Instant};

use agent_core::TemplateOrigin::Agent;
use agent_core::TemplateStore;
use agent_templates::{FileTemplates, TemplateSettings};

use crate::bench::{Bench, JOB, Kind};

const LOADS: u32 = 1000;
/// How far apart loads are when a thousand runs come one after the other.
const APART: Duration = Duration::from_millis(5);

pub(crate) async fn run() {
    println!(
        "{:<6} {:>12} {:>14} {:>10} {:>10} {:>8}",
        "scheme", "first load", "cached load", "requests", "downloads", "seconds"
    );
    files().await;
    for kind in Kind::ALL {
        place(kind).await;
    }
}

async fn files() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("job.yaml"), JOB).expect("written");
    let store = FileTemplates::new(directory.path());
    let load = || async { store.load("job.yaml", Agent).await.expect("there") };
    let first = timed(&load).await;
    let cached = average(&load).await;
    print(
        "file",
        first,
        cached,
        ["-".to_owned(), "-".to_owned(), "-".to_owned()],
    );
}

async fn place(kind: Kind) {
    let bench = Bench::with(kind, &TemplateSettings::default()).await;
    let load = || async { bench.load().await.expect("there") };
    let first = timed(&load).await;
    let cached = average(&load).await;
    bench.proxy.take();
    // A store that has read nothing yet, and a thousand runs, some milliseconds apart.
    let fresh = Bench::with(kind, &TemplateSettings::default()).await;
    let start = Instant::now();
    for _ in 0..LOADS {
        fresh.load().await.expect("there");
        tokio::time::sleep(APART).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    let seen = fresh.proxy.take();
    let downloads = seen
        .statuses
        .iter()
        .filter(|status| **status == 200)
        .count();
    let counts = [
        seen.requests.len().to_string(),
        downloads.to_string(),
        format!("{seconds:.1}"),
    ];
    print(kind.name(), first, cached, counts);
}

async fn timed<T, F: Future<Output = T>>(load: impl Fn() -> F) -> Duration {
    let start = Instant::now();
    load().await;
    start.elapsed()
}

/// Of many loads within the second in which nobody is asked.
async fn average<T, F: Future<Output = T>>(load: impl Fn() -> F) -> Duration {
    let start = Instant::now();
    for _ in 0..LOADS {
        load().await;
    }
    start.elapsed() / LOADS
}

fn print(scheme: &str, first: Duration, cached: Duration, counts: [String; 3]) {
    let [requests, downloads, seconds] = counts;
    println!(
        "{scheme:<6} {:>9.2} ms {:>11.2} µs {requests:>10} {downloads:>10} {seconds:>8}",
        first.as_secs_f64() * 1e3,
        cached.as_secs_f64() * 1e6,
    );
}
