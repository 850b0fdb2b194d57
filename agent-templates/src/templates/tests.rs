//! Who may name which templates, and that no location does harm.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("flows")).expect("made");
    for name in ["job.yaml", "flows/job.yaml"] {
        std::fs::write(dir.path().join(name), "kind: Job").expect("written");
    }
    dir
}

fn below(base: &Path) -> TemplateSettings {
    TemplateSettings {
        base: base.to_owned(),
        ..TemplateSettings::default()
    }
}

async fn refused(templates: &Templates, location: &str, origin: TemplateOrigin) -> String {
    let error = templates.load(location, origin).await;
    let error = error.expect_err(location);
    assert!(!error.is_transient(), "{error}");
    error.to_string()
}

#[tokio::test]
async fn flows_name_no_local_paths_unless_the_owner_says_so() {
    let dir = directory();
    let absolute = dir.path().join("job.yaml");
    let absolute = absolute.display();
    let templates = Templates::new(below(dir.path()));
    for location in [
        "job.yaml",
        "file:job.yaml",
        "local:job.yaml",
        &format!("FILE://{absolute}"),
        &format!("{absolute}"),
    ] {
        let error = refused(&templates, location, TemplateOrigin::Flow).await;
        let remedy = "with --allow-flow-template-scheme, or --flow-template-dir";
        assert!(
            error.contains(location) && error.contains(remedy),
            "{error}"
        );
        let own = templates.load(location, TemplateOrigin::Agent).await;
        assert!(own.is_ok(), "{location}");
    }
    let agent = templates.load("agent:job.yaml", TemplateOrigin::Flow).await;
    assert!(agent.is_ok(), "as in the Python agent");
    let templates = Templates::new(TemplateSettings {
        flow_schemes: [Scheme::File].into(),
        ..below(dir.path())
    });
    let allowed = templates.load("job.yaml", TemplateOrigin::Flow).await;
    assert!(allowed.is_ok());
    refused(&templates, "agent:job.yaml", TemplateOrigin::Flow).await;
    refused(&templates, "local:job.yaml", TemplateOrigin::Flow).await;
}

#[tokio::test]
async fn a_directory_for_flows_opens_local_paths_below_it_and_closes_all_others() {
    let dir = directory();
    let templates = Templates::new(TemplateSettings {
        flow_dir: Some(dir.path().join("flows")),
        ..below(dir.path())
    });
    for location in [
        "job.yaml",
        "file:job.yaml",
        "local:job.yaml",
        "agent:job.yaml",
    ] {
        let found = templates.load(location, TemplateOrigin::Flow).await;
        assert!(found.is_ok(), "{location}");
    }
    for location in ["../job.yaml", "agent:../job.yaml", "/etc/hostname"] {
        let error = refused(&templates, location, TemplateOrigin::Flow).await;
        assert!(error.contains("not below the directory"), "{error}");
    }
}

#[tokio::test]
async fn the_owner_can_confine_the_agents_own_template_too() {
    let dir = directory();
    let templates = Templates::new(TemplateSettings {
        agent_schemes: [Scheme::File].into(),
        ..below(dir.path())
    });
    let own = templates.load("job.yaml", TemplateOrigin::Agent).await;
    assert!(own.is_ok());
    for location in ["agent:job.yaml", "https://host/x", "s3://b/k", "gcs://b/o"] {
        let error = refused(&templates, location, TemplateOrigin::Agent).await;
        assert!(error.contains("--allow-template-scheme"), "{error}");
    }
}

#[tokio::test]
async fn other_schemes_are_unknown_to_everybody() {
    let templates = Templates::new(TemplateSettings {
        agent_schemes: BTreeSet::new(),
        ..TemplateSettings::default()
    });
    for location in ["ftp://host/job.yaml", "c:job.yaml", "s3a://bucket/key"] {
        for origin in [TemplateOrigin::Agent, TemplateOrigin::Flow] {
            let error = refused(&templates, location, origin).await;
            assert_eq!(error, format!("Unsupported file scheme {location}"));
        }
    }
}

#[cfg(not(any(feature = "gcs", feature = "http", feature = "s3")))]
#[tokio::test]
async fn places_that_were_left_out_say_so() {
    let templates = Templates::new(TemplateSettings::default());
    for location in ["http://host/x", "s3://bucket/key", "gs://bucket/object"] {
        let error = refused(&templates, location, TemplateOrigin::Agent).await;
        assert!(error.contains("built without support for"), "{error}");
    }
}

/// Every place, none of which can reach anything.
#[cfg(all(feature = "gcs", feature = "http", feature = "s3"))]
async fn nowhere() -> Templates {
    use google_cloud_auth::credentials::anonymous;
    use google_cloud_storage::client::Storage;

    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let settings = TemplateSettings {
        agent_schemes: BTreeSet::from([Scheme::File, Scheme::S3, Scheme::Gcs]),
        flow_schemes: Scheme::all(),
        flow_dir: Some("/no/such/directory".into()),
        timeout: Duration::from_millis(20),
        ..TemplateSettings::default()
    };
    let endpoint = "http://127.0.0.1:1";
    let config = aws_config::SdkConfig::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .endpoint_url(endpoint);
    let storage = Storage::builder()
        .with_endpoint(endpoint)
        .with_credentials(anonymous::Builder::new().build());
    let storage = storage.build().await.expect("a client");
    let templates = Templates::new(settings.clone())
        .with_s3(S3Templates::with_config(&settings, &config.build()))
        .with_gcs(GcsTemplates::with_client(&settings, storage));
    Templates {
        http: HttpTemplates::without_names(&settings),
        ..templates
    }
}

#[cfg(all(feature = "gcs", feature = "http", feature = "s3"))]
#[test]
fn any_text_is_a_template_or_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let templates = runtime.block_on(nowhere());
    let scheme = "(|file:|local:|agent:|http:|https:|s3:|gs:|gcs:|[a-z]{1,3}:)";
    let rest = prop_oneof![any::<String>(), "[!-~ü]{0,8}/[ -~ü]{0,12}"];
    let location = (scheme, "(|/|//|///)", rest)
        .prop_map(|(scheme, slashes, rest)| format!("{scheme}{slashes}{rest}"));
    let origin = prop_oneof![Just(TemplateOrigin::Agent), Just(TemplateOrigin::Flow)];
    proptest!(ProptestConfig::with_cases(500), |(location in location, origin in origin)| {
        if let Err(error) = runtime.block_on(templates.load(&location, origin)) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    });
}
