//! The Deployment: one small container that may do nothing on its node.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, LocalObjectReference, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretKeySelector,
    SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{API_KEY, Install, Key, PORT, STATE_DIR, TEMPLATE_DIR};

/// The user and group that distroless images call `nonroot`.
const USER: i64 = 65_532;
/// An idle agent needs 15 MiB, one with 5,000 Jobs 64 MiB.
const MEMORY: (&str, &str) = ("64Mi", "256Mi");
/// A run costs about a millisecond; there is no limit, which would only make it late.
const CPU: &str = "50m";
/// What the agent keeps between crashes is a few KB.
const STATE: &str = "16Mi";
/// What the port is called.
pub(super) const PORT_NAME: &str = "http";

impl Install {
    pub(super) fn deployment(&self) -> Deployment {
        Deployment {
            metadata: self.metadata(&self.agent_namespace),
            spec: Some(DeploymentSpec {
                replicas: Some(self.replicas),
                selector: LabelSelector {
                    match_labels: Some(self.selector()),
                    ..LabelSelector::default()
                },
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(self.labels()),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(self.pod()),
                },
                ..DeploymentSpec::default()
            }),
            status: None,
        }
    }

    fn pod(&self) -> PodSpec {
        let references = self.image_pull_secrets.iter();
        let pull: Vec<_> = references
            .map(|name| LocalObjectReference { name: name.clone() })
            .collect();
        PodSpec {
            service_account_name: Some(self.service_account_name().to_owned()),
            image_pull_secrets: (!pull.is_empty()).then_some(pull),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                max_skew: 1,
                topology_key: "kubernetes.io/hostname".to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                label_selector: Some(LabelSelector {
                    match_labels: Some(self.selector()),
                    ..LabelSelector::default()
                }),
                ..TopologySpreadConstraint::default()
            }]),
            containers: vec![self.container()],
            volumes: Some(self.volumes()),
            ..PodSpec::default()
        }
    }

    fn container(&self) -> Container {
        let quantity = |text: &str| Quantity(text.to_owned());
        let amounts = |amounts: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
            let amounts = amounts.iter();
            amounts
                .map(|(unit, amount)| ((*unit).to_owned(), quantity(amount)))
                .collect()
        };
        Container {
            name: "agent".to_owned(),
            image: Some(self.image.clone()),
            args: Some(
                [&["start".to_owned()][..], &self.args]
                    .concat()
                    .iter()
                    .map(|arg| literal(arg))
                    .collect(),
            ),
            env: Some(self.environment()),
            ports: Some(vec![ContainerPort {
                name: Some(PORT_NAME.to_owned()),
                container_port: PORT.into(),
                ..ContainerPort::default()
            }]),
            // Ready is an agent that gets through to the API. One that does not is better left
            // alone; only one that does not even try is restarted.
            readiness_probe: Some(probe("/api/health", 10, 3)),
            liveness_probe: Some(probe("/api/live", 30, 4)),
            resources: Some(ResourceRequirements {
                requests: Some(amounts(&[("cpu", CPU), ("memory", MEMORY.0)])),
                limits: Some(amounts(&[("memory", MEMORY.1)])),
                ..ResourceRequirements::default()
            }),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    ..Capabilities::default()
                }),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(self.mounts()),
            ..Container::default()
        }
    }

    fn volumes(&self) -> Vec<Volume> {
        // It outlives a container that crashes.
        let state = Volume {
            name: "state".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(STATE.to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        };
        let template = self.job_template.as_ref().map(|map| Volume {
            name: "template".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: map.name.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
        [state].into_iter().chain(template).collect()
    }

    fn mounts(&self) -> Vec<VolumeMount> {
        let state = VolumeMount {
            name: "state".to_owned(),
            mount_path: STATE_DIR.to_owned(),
            ..VolumeMount::default()
        };
        let template = self.job_template.as_ref().map(|_| VolumeMount {
            name: "template".to_owned(),
            mount_path: TEMPLATE_DIR.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
        [state].into_iter().chain(template).collect()
    }

    fn environment(&self) -> Vec<EnvVar> {
        let plain = self.env.iter().map(|(name, value)| EnvVar {
            name: name.clone(),
            value: Some(literal(value)),
            value_from: None,
        });
        let key = self.key.as_ref().map(|key| {
            let (name, key) = match key {
                Key::Own(_) => (self.name.clone(), API_KEY.to_owned()),
                Key::Existing(secret) => (secret.name.clone(), secret.key.clone()),
            };
            EnvVar {
                name: API_KEY.to_owned(),
                value: None,
                value_from: Some(EnvVarSource {
                    secret_key_ref: Some(SecretKeySelector {
                        name,
                        key,
                        optional: None,
                    }),
                    ..EnvVarSource::default()
                }),
            }
        });
        let state = EnvVar {
            name: "PREFECT_AGENT_STATE_DIR".to_owned(),
            value: Some(STATE_DIR.to_owned()),
            value_from: None,
        };
        plain.chain([state]).chain(key).collect()
    }
}

/// A text that the kubelet leaves alone, which takes `$(NAME)` for a reference.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}
