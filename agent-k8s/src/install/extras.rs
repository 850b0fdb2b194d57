//! What an agent can have besides: a disruption budget, a network policy, a monitor.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::deployment::PORT_NAME;
use super::{Install, PORT};

/// The port of DNS.
const DNS: u16 = 53;

impl Install {
    fn pods(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.selector()),
            ..LabelSelector::default()
        }
    }

    pub(super) fn disruption_budget(&self) -> PodDisruptionBudget {
        PodDisruptionBudget {
            metadata: self.metadata(&self.agent_namespace),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(self.pods()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }

    /// In: the HTTP endpoint. Out: name lookups, and these ports anywhere, since neither the API
    /// server's nor the Prefect API's addresses are known here.
    pub(super) fn network_policy(&self, ports: &[u16]) -> NetworkPolicy {
        let dns = ["UDP", "TCP"].map(|protocol| port(protocol, DNS));
        let out = ports.iter().map(|number| port("TCP", *number));
        NetworkPolicy {
            metadata: self.metadata(&self.agent_namespace),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(self.pods()),
                policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
                ingress: Some(vec![NetworkPolicyIngressRule {
                    ports: Some(vec![port("TCP", PORT)]),
                    from: None,
                }]),
                egress: Some(vec![NetworkPolicyEgressRule {
                    ports: Some(dns.into_iter().chain(out).collect()),
                    to: None,
                }]),
            }),
        }
    }

    /// The Service by which the monitor finds the pods; it has no address of its own.
    pub(super) fn service(&self) -> Service {
        Service {
            metadata: self.metadata(&self.agent_namespace),
            spec: Some(ServiceSpec {
                cluster_ip: Some("None".to_owned()),
                selector: Some(self.selector()),
                ports: Some(vec![ServicePort {
                    name: Some(PORT_NAME.to_owned()),
                    port: PORT.into(),
                    target_port: Some(IntOrString::String(PORT_NAME.to_owned())),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// A `ServiceMonitor` of the Prometheus operator, whose types are not Kubernetes' own.
    pub(super) fn monitor(&self) -> Value {
        json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": self.metadata(&self.agent_namespace),
            "spec": {
                "selector": {"matchLabels": self.selector()},
                "endpoints": [{"port": PORT_NAME, "path": "/metrics", "interval": "30s"}],
            },
        })
    }
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(number.into())),
        end_port: None,
    }
}
