//! A manifest from fuzzed parts.

use std::sync::Arc;

use agent_core::{
    Flow, FlowRun, Result, Template, TemplateOrigin, TemplateStore, Work, async_trait,
};
use agent_k8s::{Manifest, ManifestSettings, Manifests};
use serde_json::Value;

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

pub fn build(template: Option<&[u8]>, run_config: Value) -> Result<Value> {
    let flow = Flow {
        run_config,
        ..Flow::default()
    };
    let run = FlowRun::new("r", "run", Work::Flow(Box::new(flow)));
    let settings = ManifestSettings {
        job_template: template.map(|_| "job.yaml".to_owned()),
        ..ManifestSettings::default()
    };
    let store = Store(template.unwrap_or_default().to_vec());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let manifests = Manifests::new(settings, Arc::new(store));
    runtime
        .expect("a runtime")
        .block_on(manifests.build(&run, "00000000"))
        .map(Manifest::into_value)
}
