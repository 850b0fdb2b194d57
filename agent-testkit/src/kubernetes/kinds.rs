//! The kinds of objects the server knows.

/// One kind of object.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) has_status: bool,
}

/// The place of a kind in [`KINDS`].
pub(crate) type KindId = usize;

pub(crate) const NAMESPACES: KindId = 0;
pub(crate) const PODS: KindId = 1;
pub(crate) const EVENTS: KindId = 2;
pub(crate) const JOBS: KindId = 6;
#[cfg(test)]
pub(crate) const CONFIG_MAPS: KindId = 5;

pub(crate) static KINDS: [Kind; 11] = [
    kind("", "Namespace", "namespaces", &["ns"], false, true),
    kind("", "Pod", "pods", &["po"], true, true),
    kind("", "Event", "events", &["ev"], true, false),
    kind("", "Secret", "secrets", &[], true, false),
    kind(
        "",
        "ServiceAccount",
        "serviceaccounts",
        &["sa"],
        true,
        false,
    ),
    kind("", "ConfigMap", "configmaps", &["cm"], true, false),
    kind("batch", "Job", "jobs", &[], true, true),
    kind("coordination.k8s.io", "Lease", "leases", &[], true, false),
    kind("apps", "Deployment", "deployments", &["deploy"], true, true),
    kind(
        "rbac.authorization.k8s.io",
        "Role",
        "roles",
        &[],
        true,
        false,
    ),
    kind(
        "rbac.authorization.k8s.io",
        "RoleBinding",
        "rolebindings",
        &[],
        true,
        false,
    ),
];

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    has_status: bool,
) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural,
        short,
        namespaced,
        has_status,
    }
}

/// Finds a kind by the parts of a path.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<KindId> {
    KINDS
        .iter()
        .position(|kind| kind.plural == plural && kind.group == group && kind.version == version)
}

/// Finds a kind by its plural name alone.
pub(crate) fn by_plural(plural: &str) -> Option<KindId> {
    KINDS.iter().position(|kind| kind.plural == plural)
}

impl Kind {
    /// As in an object's `apiVersion`.
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As in messages about a resource: `jobs.batch`.
    pub(crate) fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}
