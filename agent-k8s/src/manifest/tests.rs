//! What the recorded manifests do not show: places in messages, and what only this agent can do.

use agent_core::{Template, TemplateOrigin, async_trait};

use super::*;

/// Templates by location; the agent's own is at `agent.yaml`.
struct Store(&'static str);

#[async_trait]
impl TemplateStore for Store {
    async fn load(&self, location: &str, _: TemplateOrigin) -> Result<Arc<Template>> {
        Ok(Arc::new(Template {
            location: location.to_owned(),
            bytes: self.0.into(),
        }))
    }
}

fn build(settings: ManifestSettings, template: &'static str, run_config: Value) -> Result<Value> {
    let flow = Flow {
        id: "f".to_owned(),
        core_version: Some("1.4.1".to_owned()),
        run_config,
        ..Flow::default()
    };
    let run = FlowRun::new("r", "calm-lynx", Work::Flow(Box::new(flow)));
    let settings = ManifestSettings {
        job_template: (!template.is_empty()).then(|| "agent.yaml".to_owned()),
        send_flow_run_logs: "true".to_owned(),
        ..settings
    };
    let manifests = Manifests::new(settings, Arc::new(Store(template)));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .expect("a runtime")
        .block_on(manifests.build(&run, "0a1b2c3d"))
        .map(Manifest::into_value)
}

fn error(settings: ManifestSettings, template: &'static str, run_config: Value) -> String {
    match build(settings, template, run_config) {
        Ok(manifest) => panic!("{manifest}"),
        Err(error) => error.to_string(),
    }
}

fn entry<'a>(manifest: &'a Value, name: &str) -> &'a Value {
    let env = &manifest["spec"]["template"]["spec"]["containers"][0]["env"];
    let mut entries = env.as_array().expect("a list").iter();
    entries.find(|entry| entry["name"] == name).expect("there")
}

fn patched(patch: &str) -> ManifestSettings {
    ManifestSettings {
        patch: Some(JobPatch::parse("owner.yaml", patch.as_bytes()).expect("a patch")),
        ..ManifestSettings::default()
    }
}

#[test]
fn a_broken_template_is_named_with_the_place_and_what_was_expected() {
    let settings = ManifestSettings::default;
    let template = "kind: Job\nspec:\n  template:\n    spec:\n      containers: flow\n";
    assert_eq!(
        error(settings(), template, Value::Null),
        "agent.yaml, line 5, column 19: spec.template.spec.containers: expected a list, found a string"
    );
    let template =
        "spec:\n  template:\n    spec:\n      containers:\n      - env:\n        - A=1\n";
    assert_eq!(
        error(settings(), template, Value::Null),
        "agent.yaml, line 6, column 11: spec.template.spec.containers[0].env[0]: expected a mapping, found a string"
    );
    assert_eq!(
        error(settings(), "spec: [1, 2\n", Value::Null),
        "agent.yaml, line 2, column 1: while parsing a flow sequence, expected ',' or ']'"
    );
    let config = json!({"type": "KubernetesRun", "job_template": "kind: Job\nspec: {}\n"});
    assert_eq!(
        error(settings(), "", config),
        "the run config's job_template, line 2, column 7: spec.template.spec: expected a mapping, found nothing"
    );
}

#[test]
fn the_key_can_stay_in_a_secret() {
    let settings = ManifestSettings {
        key: Some("hush".to_owned().into()),
        key_secret: Some(KeySecret {
            name: "prefect".to_owned(),
            key: "api-key".to_owned(),
        }),
        tenant_id: "t".to_owned(),
        ..ManifestSettings::default()
    };
    let manifest = build(settings, "", Value::Null).expect("a manifest");
    for name in ["PREFECT__CLOUD__API_KEY", "PREFECT__CLOUD__AUTH_TOKEN"] {
        let reference = json!({"secretKeyRef": {"name": "prefect", "key": "api-key"}});
        assert_eq!(entry(&manifest, name)["valueFrom"], reference);
    }
    assert_eq!(entry(&manifest, "PREFECT__CLOUD__TENANT_ID")["value"], "t");
    assert!(!manifest.to_string().contains("hush"));
    assert_eq!(check(&manifest), Ok(()));
}

#[test]
fn both_kinds_of_patch_have_the_last_word() {
    let operations = r#"
- {op: add, path: /spec/template/spec/tolerations, value: [{key: gpu, operator: Exists}]}
- {op: replace, path: /spec/template/spec/restartPolicy, value: OnFailure}
"#;
    let merge = "spec: {template: {spec: {restartPolicy: OnFailure, tolerations: [{key: gpu, operator: Exists}]}}}";
    let expected = build(patched(operations), "", Value::Null).expect("a manifest");
    let pod = &expected["spec"]["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "OnFailure");
    assert_eq!(pod["tolerations"][0]["key"], "gpu");
    let merged = build(patched(merge), "", Value::Null).expect("a manifest");
    assert_eq!(merged, expected);
}

#[test]
fn a_patch_that_does_not_apply_names_the_operation() {
    let patch = "- {op: test, path: /kind, value: Job}\n- {op: remove, path: /spec/nothing}\n";
    let message = error(patched(patch), "", Value::Null);
    assert!(
        message.starts_with(
            "the job patch owner.yaml does not apply: operation 1 (remove /spec/nothing): "
        ),
        "{message}"
    );
    for text in [
        "[{op: jump, path: /a}]",
        "hello",
        "[{op: add, path: a}]",
        "[1",
    ] {
        let message = JobPatch::parse("owner.yaml", text.as_bytes()).expect_err("refused");
        assert!(message.contains("owner.yaml"), "{message}");
    }
}

#[test]
fn a_patch_cannot_hide_a_job_from_the_agent() {
    for patch in [
        "metadata: {name: mine}",
        "metadata: {labels: null}",
        "spec: {template: {metadata: {labels: {prefect.io/flow_run_id: other}}}}",
        "[{op: replace, path: '', value: 1}]",
    ] {
        let message = error(patched(patch), "", Value::Null);
        assert!(message.contains("finds it again"), "{message}");
    }
}

#[test]
fn volumes_of_the_agent_join_those_of_the_template() {
    let settings = ManifestSettings {
        volumes: vec![
            json!({"name": "data", "emptyDir": {}}),
            json!({"name": "ca", "configMap": {"name": "ca"}}),
        ],
        volume_mounts: vec![
            json!({"name": "data", "mountPath": "/data"}),
            json!({"name": "ca", "mountPath": "/ca"}),
        ],
        ..ManifestSettings::default()
    };
    let template = "spec:\n  template:\n    spec:\n      volumes: [{name: data, hostPath: {path: /d}}]\n      containers: [{name: flow, volumeMounts: [{name: data, mountPath: /data, readOnly: true}]}]\n";
    let manifest = build(settings, template, Value::Null).expect("a manifest");
    let pod = &manifest["spec"]["template"]["spec"];
    assert_eq!(
        pod["volumes"],
        json!([{"name": "data", "hostPath": {"path": "/d"}}, {"name": "ca", "configMap": {"name": "ca"}}])
    );
    assert_eq!(
        pod["containers"][0]["volumeMounts"],
        json!([{"name": "data", "mountPath": "/data", "readOnly": true}, {"name": "ca", "mountPath": "/ca"}])
    );
}

#[test]
fn the_check_names_the_place_and_takes_numbers_for_quantities() {
    let template = "metadata: {annotations: {a: 1}}\nspec: {template: {spec: {containers: []}}}\n";
    let manifest = build(ManifestSettings::default(), template, Value::Null).expect("a manifest");
    let message = check(&manifest).expect_err("a number");
    assert!(message.starts_with("metadata.annotations"), "{message}");
    let template =
        "spec: {template: {spec: {containers: [{name: flow, resources: {limits: {cpu: 1}}}]}}}\n";
    let manifest = build(ManifestSettings::default(), template, Value::Null).expect("a manifest");
    assert_eq!(check(&manifest), Ok(()));
}

#[test]
fn the_agents_amounts_are_for_flows_that_say_nothing_of_them() {
    let settings = || ManifestSettings {
        resources: JobResources {
            memory_request: Some("512Mi".to_owned()),
            memory_limit: Some("1Gi".to_owned()),
            cpu_request: Some("500m".to_owned()),
            cpu_limit: None,
        },
        image_pull_policy: Some("Always".to_owned()),
        ..ManifestSettings::default()
    };
    let container = |template, config| {
        let manifest = build(settings(), template, config).expect("fine");
        manifest["spec"]["template"]["spec"]["containers"][0].clone()
    };
    let universal = json!({"type": "UniversalRun", "__version__": "1"});
    let plain = container("", universal);
    let expected =
        json!({"requests": {"memory": "512Mi", "cpu": "500m"}, "limits": {"memory": "1Gi"}});
    assert_eq!(plain["resources"], expected);
    assert_eq!(plain["imagePullPolicy"], "Always");

    let run = json!({
        "type": "KubernetesRun", "__version__": "1", "memory_request": "2Gi",
        "image_pull_policy": "Never",
    });
    let own = container("", run);
    // A limit of 1 GiB would be less than what is asked for.
    let expected = json!({"requests": {"memory": "2Gi", "cpu": "500m"}, "limits": {}});
    assert_eq!(own["resources"], expected);
    assert_eq!(own["imagePullPolicy"], "Never");

    let template = "spec: {template: {spec: {containers: [{imagePullPolicy: IfNotPresent, resources: {requests: , limits: {cpu: 2}}}]}}}";
    let templated = container(
        template,
        json!({"type": "KubernetesRun", "__version__": "1"}),
    );
    let expected = json!({"requests": {"memory": "512Mi"}, "limits": {"cpu": 2, "memory": "1Gi"}});
    assert_eq!(templated["resources"], expected);
    assert_eq!(templated["imagePullPolicy"], "IfNotPresent");
}

#[test]
fn what_is_wrong_with_the_agents_template_concerns_the_agent_and_a_flows_its_run() {
    for template in ["a: b: c", "[a]", "spec: 1", "apiVersion: batch/v1"] {
        let agents = build(ManifestSettings::default(), template, Value::Null);
        assert!(
            matches!(agents, Err(Error::Agent(_))),
            "{template}: {agents:?}"
        );
        for config in [
            json!({"type": "KubernetesRun", "job_template": template}),
            json!({"type": "KubernetesRun", "job_template_path": "s3://b/k"}),
        ] {
            let flows = build(ManifestSettings::default(), template, config);
            assert!(
                matches!(flows, Err(Error::Permanent(_))),
                "{template}: {flows:?}"
            );
        }
    }
    let patch = patched("[{op: remove, path: /none}]");
    let refused = build(patch, "", Value::Null);
    assert!(matches!(refused, Err(Error::Permanent(_))), "{refused:?}");
}

#[test]
fn a_manifest_that_kubernetes_cannot_store_is_refused_with_its_size_and_the_limit() {
    let long = "x".repeat(LARGEST);
    for config in [
        json!({"type": "UniversalRun", "env": {"A": long}}),
        json!({"type": "KubernetesRun", "job_template": {"metadata": {"annotations": {"a": long}},
            "spec": {"template": {"spec": {}}}}}),
    ] {
        let message = error(ManifestSettings::default(), "", config);
        assert!(
            message.contains(" bytes as JSON, and Kubernetes stores at most 1572864"),
            "{message}"
        );
        assert!(message.contains("of flow run r has 157"), "{message}");
    }
}

#[test]
fn no_message_is_longer_than_a_message_may_be() {
    let long = "x".repeat(1 << 20);
    for config in [
        json!({"type": long}),
        json!({"type": "KubernetesRun", "image_pull_policy": long}),
        json!({"type": "KubernetesRun", "job_template": format!("!{long}")}),
        json!({"type": "KubernetesRun", "job_template": format!("{{{long}: 1, spec: 1}}")}),
    ] {
        let message = error(ManifestSettings::default(), "", config);
        assert!(message.len() <= LONGEST_MESSAGE, "{} bytes", message.len());
    }
}

#[test]
fn a_patch_cannot_copy_without_end() {
    let mut operations = vec![json!({"op": "add", "path": "/spec/x", "value": ["x".repeat(1000)]})];
    for _ in 0..40 {
        operations.push(json!({"op": "copy", "from": "/spec/x", "path": "/spec/x/0"}));
    }
    let message = error(
        patched(&Value::from(operations).to_string()),
        "",
        Value::Null,
    );
    assert!(
        message.contains("owner.yaml copies more than 8 MiB, at operation "),
        "{message}"
    );
}
