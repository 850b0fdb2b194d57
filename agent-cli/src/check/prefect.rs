//! The Prefect API's side.

use std::collections::HashSet;
use std::time::Duration;

use agent_api_client::{ApiError, ApiSettings, Backend, Cause, PrefectApi};
use agent_core::{FlowRunSource, ReadyQuery};
use jiff::{SignedDuration, Timestamp};

use super::report::Report;

/// How long passing failures are retried: somebody waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// Clocks that differ by more are told. The agent follows the API's clock, but flows, whose pods
/// have the cluster's, do not.
const SKEW: SignedDuration = SignedDuration::from_secs(10);
/// What is looked at after the API has answered.
const AFTER_API: [&str; 5] = [
    "API key",
    "tenant",
    "server version",
    "clock",
    "ready queue",
];

/// What was found.
pub(super) struct Found {
    pub(super) report: Report,
    /// The tenant, if it is known.
    pub(super) tenant: Option<String>,
}

pub(super) async fn look(mut settings: ApiSettings) -> Found {
    settings.retry_for = PATIENCE;
    settings.retry_start_for = PATIENCE;
    let mut found = Found {
        report: Report::default(),
        tenant: None,
    };
    let report = &mut found.report;
    let api = match PrefectApi::new(settings.clone()) {
        Ok(api) => api,
        Err(error) => {
            report.bad("Prefect API", error, "correct the setting that is named");
            report.skip(&AFTER_API, "the API was not asked");
            return found;
        }
    };
    match api.hello().await {
        Ok(()) => {
            report.good("Prefect API", format!("{} answers", api.address()));
            let key = match &settings.key {
                Some(_) => "is accepted",
                None => "there is none, and the API asks for none",
            };
            report.good("API key", key);
        }
        Err(error) if is_key(&error) => {
            report.good("Prefect API", format!("{} answers", api.address()));
            key_is_refused(report, &error);
            report.skip(&AFTER_API[1..], "the API refused the key");
            return found;
        }
        Err(error) => {
            report.bad("Prefect API", error.to_string(), unreachable(&error.cause));
            report.skip(&AFTER_API, "the API did not answer");
            return found;
        }
    }
    found.tenant = tenant(&api, &settings, report).await;
    version(&api, report).await;
    clock(&api, report);
    if found.tenant.is_some() {
        queue(&api, report).await;
    } else {
        report.skip(&["ready queue"], "the tenant is not known");
    }
    found
}

fn is_key(error: &ApiError) -> bool {
    matches!(error.cause, Cause::Unauthorized(_))
}

fn key_is_refused(report: &mut Report, error: &ApiError) {
    report.bad(
        "API key",
        error.to_string(),
        "give a key that is valid, with --key, PREFECT__CLOUD__API_KEY or ~/.prefect/auth.toml",
    );
}

fn unreachable(cause: &Cause) -> &'static str {
    match cause {
        Cause::Connect(_) | Cause::Broken(_) => {
            "see that the server runs and can be reached from here, and that --api or PREFECT__CLOUD__API is its address"
        }
        Cause::Malformed(_) | Cause::Status { .. } => {
            "give the address of the GraphQL API itself, not of the UI or of a page in front of it, with --api or PREFECT__CLOUD__API"
        }
        _ => "wait until the API is well again, or look at its server's log",
    }
}

async fn tenant(api: &PrefectApi, settings: &ApiSettings, report: &mut Report) -> Option<String> {
    let name = "tenant";
    let tenants = match api.tenants().await {
        Ok(tenants) => tenants,
        Err(error) if is_key(&error) => {
            // Greetings are for everybody, tenants are not.
            report.lines.retain(|line| line.name != "API key");
            key_is_refused(report, &error);
            report.skip(&[name], "the API refused the key");
            return None;
        }
        Err(error) => {
            let remedy = match settings.backend {
                Backend::Cloud => {
                    "give a key that belongs to a tenant, with --key, or say --backend server if this is a Prefect Server"
                }
                Backend::Server => "see why the server does not tell its tenants in its log",
            };
            report.bad(name, error.to_string(), remedy);
            return None;
        }
    };
    match (&settings.tenant_id, tenants.first()) {
        (None, Some(first)) => {
            report.good(name, first);
            Some(first.clone())
        }
        (Some(given), Some(_)) if tenants.contains(given) => {
            report.good(name, given);
            Some(given.clone())
        }
        (Some(given), Some(first)) => {
            let remedy = format!("leave --tenant-id out, or give {first}");
            report.bad(name, format!("the API has no tenant {given}"), remedy);
            None
        }
        (_, None) => {
            let remedy = "create one with `prefect server create-tenant --name default`";
            report.bad(name, "the server has no tenant", remedy);
            None
        }
    }
}

async fn version(api: &PrefectApi, report: &mut Report) {
    match api.version().await {
        Ok(Some(version)) => report.good("server version", version),
        Ok(None) => report.open("server version", "the API does not tell it"),
        Err(error) => report.open("server version", error.to_string()),
    }
}

fn clock(api: &PrefectApi, report: &mut Report) {
    let ahead = api.clock_ahead();
    let seconds = ahead.abs().as_secs_f64();
    let side = if ahead.is_positive() {
        "ahead of"
    } else {
        "behind"
    };
    let detail = format!("the API's clock is {seconds:.1} s {side} this machine's");
    if ahead.is_zero() {
        report.good("clock", "agrees with the API's");
    } else if ahead.abs() <= SKEW {
        report.good("clock", detail);
    } else {
        let remedy = "let both machines take their time from the same servers (NTP)";
        report.bad("clock", detail, remedy);
    }
}

async fn queue(api: &PrefectApi, report: &mut Report) {
    let name = "ready queue";
    let query = ReadyQuery {
        before: Timestamp::now(),
        known: &HashSet::new(),
        limit: 0,
    };
    match api.ready(query).await {
        Ok(ready) => {
            let detail = format!("{} flow run(s) for these labels are due", ready.queued);
            report.good(name, detail);
        }
        Err(error) => {
            let remedy = "see why the server does not answer the query in its log";
            report.bad(name, error.to_string(), remedy);
        }
    }
}
