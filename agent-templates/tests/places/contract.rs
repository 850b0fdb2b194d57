//! What every place on the network must do, shown for each kind against its server.

use std::sync::Arc;
use std::time::Duration;

use agent_core::{Error, TemplateOrigin};
use agent_templates::{LARGEST, TemplateSettings};
use agent_testkit::stores::Store;

use crate::bench::{Bench, JOB, Kind, impatient};
use crate::proxy::{Fault, Seen};
use crate::servers::stores;

tests![of each kind:
    reads_a_template,
    names_what_is_missing,
    says_when_it_is_denied,
    sees_a_change_and_a_deletion,
    refuses_what_is_too_large_and_takes_what_just_fits,
    reads_an_empty_template,
    refuses_what_is_not_text,
    gives_up_on_a_slow_server,
    gives_up_on_a_silent_server,
    does_not_take_half_a_template,
    takes_overload_as_a_passing_failure,
    serves_the_last_copy_when_the_server_is_killed,
    does_not_serve_a_copy_of_what_was_denied,
    downloads_once_for_a_thousand_loads,
    asks_once_for_all_who_wait,
];

async fn refusal(bench: &Bench) -> Error {
    let error = bench.load().await.expect_err("refused");
    let text = error.to_string();
    let (place, _) = bench.location.rsplit_once('/').expect("a path");
    assert!(text.contains(place), "names the location: {text}");
    assert!(!text.contains("secret-of-the-test"), "{text}");
    error
}

async fn permanent(bench: &Bench) -> String {
    let error = refusal(bench).await;
    assert!(!error.is_transient(), "{error}");
    error.to_string()
}

async fn transient(bench: &Bench) -> String {
    let error = refusal(bench).await;
    assert!(error.is_transient(), "{error}");
    error.to_string()
}

fn contains(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in: {text}");
}

async fn reads_a_template(kind: Kind) {
    let bench = Bench::new(kind).await;
    let found = bench.load().await.expect("there");
    assert_eq!(found.bytes, JOB.as_bytes());
    assert_eq!(found.location, bench.location);
    let again = bench.load().await.expect("there");
    assert!(Arc::ptr_eq(&found, &again), "an unchanged one is the same");
}

async fn names_what_is_missing(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    bench.location = bench.location.replace("my job", "none");
    contains(
        &permanent(&bench).await,
        match kind {
            Kind::Http => "answered 404 Not Found; check the address",
            Kind::S3 => "there is no key \"dir/none+ü 50%.yaml\" in the bucket \"bucket-",
            Kind::Gcs => "there is no object \"dir/none+ü 50%.yaml\" in the bucket \"bucket-",
        },
    );
    bench.location = bench.location.replace("bucket-", "no-bucket-");
    contains(
        &permanent(&bench).await,
        match kind {
            Kind::Http => "answered 404",
            Kind::S3 => "there is no bucket \"no-bucket-",
            Kind::Gcs => "or no such bucket",
        },
    );
}

async fn says_when_it_is_denied(kind: Kind) {
    let bench = Bench::new(kind).await;
    bench.proxy.set(Fault::Answer(bench.denial()));
    contains(
        &permanent(&bench).await,
        match kind {
            Kind::Http => "answered 403 Forbidden; check that it may be read",
            Kind::S3 => "user/agent is not authorized; allow it s3:GetObject",
            Kind::Gcs => "agent@example.test does not have storage.objects.get access; grant",
        },
    );
}

async fn sees_a_change_and_a_deletion(kind: Kind) {
    let bench = Bench::new(kind).await;
    let first = bench.load().await.expect("there");
    bench.put("kind: Pod").await;
    assert_eq!(bench.load().await.expect("there").bytes, b"kind: Pod");
    bench.put(JOB).await;
    assert_eq!(bench.load().await.expect("there").bytes, first.bytes);
    bench.delete().await;
    permanent(&bench).await;
}

async fn refuses_what_is_too_large_and_takes_what_just_fits(kind: Kind) {
    let bench = Bench::new(kind).await;
    bench.put(vec![b' '; LARGEST]).await;
    assert_eq!(bench.load().await.expect("fits").bytes.len(), LARGEST);
    bench.put(vec![b' '; LARGEST + 1]).await;
    contains(&permanent(&bench).await, "more than 1048576 bytes");
    bench.put(vec![b' '; 20 * LARGEST]).await;
    contains(&permanent(&bench).await, "more than 1048576 bytes");
}

async fn reads_an_empty_template(kind: Kind) {
    let bench = Bench::new(kind).await;
    bench.put("").await;
    let found = bench.load().await.expect("there");
    assert!(found.bytes.is_empty());
    assert!(Arc::ptr_eq(&found, &bench.load().await.expect("there")));
}

async fn refuses_what_is_not_text(kind: Kind) {
    let bench = Bench::new(kind).await;
    bench.put(b"kind: J\xf6b").await;
    contains(&permanent(&bench).await, "is not UTF-8 text: byte 7");
}

async fn gives_up_on_a_slow_server(kind: Kind) {
    let settings = TemplateSettings {
        timeout: Duration::from_millis(500),
        ..impatient()
    };
    let bench = Bench::with(kind, &settings).await;
    bench.proxy.set(Fault::Slow);
    contains(&transient(&bench).await, "did not arrive within 500ms");
}

async fn gives_up_on_a_silent_server(kind: Kind) {
    let settings = TemplateSettings {
        timeout: Duration::from_millis(500),
        ..impatient()
    };
    let bench = Bench::with(kind, &settings).await;
    bench.proxy.set(Fault::Silent);
    contains(&transient(&bench).await, "did not arrive within 500ms");
    bench.proxy.set(Fault::None);
    assert!(bench.load().await.is_ok());
}

async fn does_not_take_half_a_template(kind: Kind) {
    let bench = Bench::new(kind).await;
    bench.proxy.set(Fault::Cut);
    transient(&bench).await;
    bench.proxy.set(Fault::None);
    assert_eq!(bench.load().await.expect("whole").bytes, JOB.as_bytes());
}

async fn takes_overload_as_a_passing_failure(kind: Kind) {
    let bench = Bench::new(kind).await;
    for status in [429, 500, 503] {
        bench.proxy.set(Fault::Answer(bench.answer(status, "busy")));
        contains(&transient(&bench).await, &format!("answered {status}"));
    }
}

async fn serves_the_last_copy_when_the_server_is_killed(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let server = match kind {
        Kind::Http => stores().web(directory.path()),
        Kind::S3 => stores().moto(&[]),
        Kind::Gcs => stores().gcs(),
    };
    let mut server = server.expect("a server");
    let settings = TemplateSettings {
        stale_ok: Duration::from_secs(3600),
        ..impatient()
    };
    let bench = match kind {
        Kind::Http => web_of_files(directory.path(), &server, &settings).await,
        _ => Bench::on(kind, server.address(), &settings).await,
    };
    let first = bench.load().await.expect("there");
    server.kill();
    for _ in 0..3 {
        let copy = bench.load().await.expect("a copy");
        assert!(Arc::ptr_eq(&first, &copy));
    }
    let flow = bench.store.load(&bench.location, TemplateOrigin::Flow);
    assert!(flow.await.is_err(), "there is no copy for flows");
}

/// The template in a file, and a web server that knows nothing of ETags.
async fn web_of_files(
    directory: &std::path::Path,
    server: &Store,
    settings: &TemplateSettings,
) -> Bench {
    std::fs::write(directory.join("job.yaml"), JOB).expect("written");
    let mut bench = Bench::with(Kind::Http, settings).await;
    bench.location = format!("http://{}/job.yaml", server.address());
    bench
}

async fn does_not_serve_a_copy_of_what_was_denied(kind: Kind) {
    let bench = Bench::new(kind).await;
    bench.load().await.expect("there");
    bench.proxy.set(Fault::Answer(bench.denial()));
    permanent(&bench).await;
    bench.proxy.set(Fault::Closed);
    transient(&bench).await;
}

async fn downloads_once_for_a_thousand_loads(kind: Kind) {
    let settings = TemplateSettings {
        fresh_for: Duration::from_millis(50),
        ..impatient()
    };
    let bench = Bench::with(kind, &settings).await;
    let first = bench.load().await.expect("there");
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        let again = bench.load().await.expect("there");
        assert!(Arc::ptr_eq(&first, &again));
    }
    let Seen { requests, statuses } = bench.proxy.take();
    let periods = usize::try_from(start.elapsed().as_millis() / 50).expect("soon");
    assert!(requests.len() <= periods + 2, "{requests:?}");
    let downloads = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(downloads, 1, "{statuses:?}");
}

async fn asks_once_for_all_who_wait(kind: Kind) {
    let bench = Arc::new(Bench::with(kind, &TemplateSettings::default()).await);
    let loads: Vec<_> = (0..1000)
        .map(|_| {
            let bench = bench.clone();
            tokio::spawn(async move { bench.load().await })
        })
        .collect();
    for load in loads {
        let found = load.await.expect("no panic").expect("there");
        assert_eq!(found.bytes, JOB.as_bytes());
    }
    assert_eq!(bench.proxy.take().requests.len(), 1);
}
