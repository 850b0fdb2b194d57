//! A manifest, from the run's description to what is sent.

use std::sync::Arc;

use agent_core::{
    Flow, FlowRun, Result, Template, TemplateOrigin, TemplateStore, Work, async_trait,
};
use agent_k8s::{ManifestSettings, Manifests};
use serde_json::{Value, json};

/// A template with what teams put into theirs.
const TEMPLATE: &str = "\
apiVersion: batch/v1
kind: Job
metadata:
  labels: {team: data}
spec:
  backoffLimit: 0
  ttlSecondsAfterFinished: 3600
  template:
    metadata:
      annotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: \"false\"}
    spec:
      restartPolicy: Never
      tolerations:
      - {key: batch, operator: Exists, effect: NoSchedule}
      volumes:
      - name: scratch
        emptyDir: {}
      containers:
      - name: flow
        envFrom:
        - secretRef: {name: warehouse}
        volumeMounts:
        - {name: scratch, mountPath: /scratch}
";

struct Store;

#[async_trait]
impl TemplateStore for Store {
    async fn load(&self, location: &str, _: TemplateOrigin) -> Result<Arc<Template>> {
        Ok(Arc::new(Template {
            location: location.to_owned(),
            bytes: TEMPLATE.into(),
        }))
    }
}

fn main() {
    divan::main();
}

fn build(bencher: divan::Bencher<'_, '_>, run_config: Value) {
    let flow = Flow {
        id: "5f1e0000-0000-4000-8000-000000000000".to_owned(),
        core_version: Some("1.4.1".to_owned()),
        run_config,
        storage: json!({"type": "Local"}),
        ..Flow::default()
    };
    let run = FlowRun::new("r", "run", Work::Flow(Box::new(flow)));
    let settings = ManifestSettings {
        backend: "server".to_owned(),
        api: "http://prefect.example.com:4200".to_owned(),
        logging_level: "INFO".to_owned(),
        send_flow_run_logs: "true".to_owned(),
        ..ManifestSettings::default()
    };
    let manifests = Manifests::new(settings, Arc::new(Store));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime without drivers");
    let built = || {
        let manifest = runtime.block_on(manifests.build(divan::black_box(&run), "00000000"));
        manifest.map(|manifest| manifest.to_string())
    };
    assert!(built().is_ok());
    bencher.bench(built);
}

#[divan::bench]
fn universal_run(bencher: divan::Bencher<'_, '_>) {
    build(bencher, json!({"type": "UniversalRun"}));
}

#[divan::bench]
fn kubernetes_run_with_a_template(bencher: divan::Bencher<'_, '_>) {
    let config = json!({
        "type": "KubernetesRun", "env": {"STAGE": "production"}, "job_template_path": "s3://b/job.yaml",
        "image": "registry.example.com/flows/etl:2030.1", "cpu_request": "500m",
        "memory_limit": "2Gi", "image_pull_secrets": ["registry"], "service_account_name": "etl",
    });
    build(bencher, config);
}
