//! Whatever a template or run config is, there is a manifest or an error, never a panic.

use std::sync::Arc;

use agent_core::{
    Flow, FlowRun, Result, Template, TemplateOrigin, TemplateStore, Work, async_trait,
};
use agent_k8s::{JobPatch, Manifest, ManifestSettings, Manifests, manifest, yaml};
use proptest::prelude::*;
use serde_json::{Value, json};

struct Store(Vec<u8>);

#[async_trait]
impl TemplateStore for Store {
    async fn load(&self, location: &str, _: TemplateOrigin) -> Result<Arc<Template>> {
        Ok(Arc::new(Template {
            location: location.to_owned(),
            bytes: self.0.clone(),
        }))
    }
}

fn build(template: Option<Vec<u8>>, run_config: Value, storage: Value) -> Result<Value> {
    let flow = Flow {
        id: "f".to_owned(),
        run_config,
        storage,
        ..Flow::default()
    };
    let run = FlowRun::new("r", "run", Work::Flow(Box::new(flow)));
    let settings = ManifestSettings {
        job_template: template.is_some().then(|| "job.yaml".to_owned()),
        ..ManifestSettings::default()
    };
    let store = Store(template.unwrap_or_default());
    let manifests = Manifests::new(settings, Arc::new(store));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .expect("a runtime")
        .block_on(manifests.build(&run, "00000000"))
        .map(Manifest::into_value)
}

/// Any JSON, with the names that mean something often enough.
fn any_json(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        prop::sample::select(names).prop_map(str::to_owned),
        any::<String>()
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

const TEMPLATE: &[&str] = &[
    "metadata",
    "name",
    "labels",
    "spec",
    "template",
    "containers",
    "env",
    "resources",
    "requests",
    "limits",
    "image",
    "volumes",
    "serviceAccountName",
    "imagePullSecrets",
    "value",
];
const RUN_CONFIG: &[&str] = &[
    "type",
    "KubernetesRun",
    "UniversalRun",
    "DockerRun",
    "env",
    "labels",
    "image",
    "cpu_limit",
    "memory_request",
    "service_account_name",
    "image_pull_secrets",
    "image_pull_policy",
    "Always",
    "job_template_path",
    "Docker",
    "S3",
    "bucket",
    "flows",
    "image_name",
    "image_tag",
];

/// A template that is nearly right: any JSON at one place of a good one.
fn nearly() -> impl Strategy<Value = Value> {
    let places = [
        "/metadata",
        "/metadata/name",
        "/metadata/labels",
        "/spec",
        "/spec/template",
        "/spec/template/spec",
        "/spec/template/metadata",
        "/spec/template/spec/containers",
        "/spec/template/spec/containers/0",
        "/spec/template/spec/containers/0/env",
        "/spec/template/spec/containers/0/env/0",
        "/spec/template/spec/containers/0/resources",
    ];
    (prop::sample::select(places.to_vec()), any_json(TEMPLATE)).prop_map(|(place, value)| {
        let mut template = json!({
            "metadata": {"name": "n", "labels": {}},
            "spec": {"template": {"metadata": {}, "spec": {"containers": [
                {"name": "flow", "env": [{"name": "A", "value": "b"}], "resources": {}}]}}},
        });
        *template.pointer_mut(place).expect("there") = value;
        template
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_as_template(bytes in any::<Vec<u8>>()) {
        let _ = build(Some(bytes), Value::Null, Value::Null);
    }

    #[test]
    fn any_text_like_yaml_as_template(text in "[ \\n:a-c0-9\\-\\[\\]{}\"'&*!|>#?,%@\t]{0,60}") {
        let _ = build(Some(text.clone().into_bytes()), Value::Null, Value::Null);
        let _ = yaml::locate(text.as_bytes(), &["a".into(), 0.into()]);
    }

    #[test]
    fn json_is_read_as_what_it_says(text in "[ -~é日😀]{0,12}", number in any::<i64>()) {
        let value = json!({"t": text, text.clone(): [number, null, true, {"n": text}]});
        prop_assert_eq!(yaml::parse(value.to_string().as_bytes()), Ok(value.clone()));
        let pretty = format!("{value:#}");
        prop_assert_eq!(yaml::parse(pretty.as_bytes()), Ok(value));
    }

    #[test]
    fn a_template_with_one_odd_place_makes_a_labelled_job_or_a_message(template in nearly()) {
        match build(Some(template.to_string().into_bytes()), Value::Null, Value::Null) {
            Ok(job) => {
                let labels = &job["spec"]["template"]["metadata"]["labels"];
                prop_assert_eq!(&labels[manifest::FLOW_RUN_ID], "r");
                let _ = manifest::check(&job);
            }
            Err(error) => prop_assert!(error.to_string().starts_with("job.yaml"), "{}", error),
        }
    }

    #[test]
    fn any_run_config_makes_a_job_that_kubernetes_can_read_or_a_message(
        mut config in any_json(RUN_CONFIG),
        kind in prop::option::of(prop::sample::select(vec!["KubernetesRun", "UniversalRun"])),
        storage in any_json(RUN_CONFIG),
    ) {
        if let (Some(kind), Value::Object(members)) = (kind, &mut config) {
            members.insert("type".to_owned(), kind.into());
            members.remove("job_template_path");
        }
        if let Ok(job) = build(None, config, storage) {
            prop_assert_eq!(manifest::check(&job), Ok(()));
        }
    }

    #[test]
    fn any_patch_applies_or_is_refused(patch in any_json(&["op", "add", "path", "/spec", "value"])) {
        let _ = JobPatch::parse("p", patch.to_string().as_bytes());
    }
}
