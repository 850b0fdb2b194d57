//! The places on the network, against real servers. Where those cannot be installed the tests that
//! need them are skipped, and say so; in CI they fail then.

/// A list of tests, each an asynchronous function; or of those that take a kind of place.
macro_rules! tests {
    (of each kind: $($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[(&str, fn(Kind) -> futures::future::BoxFuture<'static, ()>)] =
            &[$((stringify!($name), |kind| Box::pin($name(kind)))),*];
    };
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[(&str, fn() -> futures::future::BoxFuture<'static, ()>)] =
            &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

mod bench;
mod child;
mod contract;
mod gcs;
mod http;
mod measure;
mod proxy;
mod s3;
mod servers;

use std::future::Future;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use bench::Kind;

fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Some(code) = child::main() {
        return code;
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        for (name, test) in contract::TESTS {
            let name = format!("{}::{name}", kind.name());
            trials.push(trial(kind, name, move || test(kind)));
        }
    }
    let special = [
        (Kind::Gcs, gcs::TESTS),
        (Kind::Http, http::TESTS),
        (Kind::S3, s3::TESTS),
    ];
    for (kind, tests) in special {
        for (name, test) in tests {
            trials.push(trial(kind, format!("{}::{name}", kind.name()), test));
        }
    }
    let measured = || measure::run();
    let measure = trial(Kind::Gcs, "measure", measured).with_ignored_flag(true);
    trials.push(measure);
    let conclusion = libtest_mimic::run(&arguments, trials);
    bench::stop();
    conclusion.exit_code()
}

/// A test that needs the servers.
fn trial<F: Future<Output = ()>>(
    kind: Kind,
    name: impl Into<String>,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        let needed = match kind {
            Kind::Gcs => servers::installed().and_then(|stores| {
                let binary = stores.gcs_binary();
                binary.map(drop).map_err(|error| error.to_string())
            }),
            Kind::Http | Kind::S3 => servers::installed().map(drop),
        };
        if let Err(why) = needed {
            return without(&why);
        }
        run(test());
        Ok(Completion::Completed)
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}

fn without(why: &str) -> Result<Completion, Failed> {
    let why = format!("SKIPPED, for there are no servers to test against: {why}");
    if std::env::var_os("CI").is_some() {
        return Err(why.into());
    }
    Ok(Completion::ignored_with(why))
}
