//! Where a flow's code is. Only Docker storage matters to a Job, since it names the image; of the
//! others it is checked that a flow could be loaded from them at all.

use serde_json::{Map, Value};

/// A type of storage and the members it needs.
struct Kind {
    name: &'static str,
    /// Must be there, as text.
    texts: &'static [&'static str],
    /// Must be there, as objects.
    objects: &'static [&'static str],
    /// May be absent but not null.
    not_null: &'static [&'static str],
}

const fn kind(name: &'static str, texts: &'static [&'static str]) -> Kind {
    Kind {
        name,
        texts,
        objects: &[],
        not_null: &[],
    }
}

/// The storage types of Prefect 1.4.1.
const KINDS: &[Kind] = &[
    kind("Azure", &["container"]),
    kind("Bitbucket", &["project", "repo"]),
    kind("CodeCommit", &["repo"]),
    Kind {
        not_null: &["prefect_version"],
        ..kind("Docker", &[])
    },
    kind("GCS", &["bucket"]),
    kind("Git", &["flow_path"]),
    kind("GitHub", &["repo", "path"]),
    kind("GitLab", &["repo"]),
    Kind {
        not_null: &["directory"],
        ..kind("Local", &[])
    },
    kind("Module", &["module"]),
    kind("S3", &["bucket"]),
    Kind {
        objects: &["build_request_kwargs", "get_flow_request_kwargs"],
        ..kind("Webhook", METHODS)
    },
];

const METHODS: &[&str] = &["build_request_http_method", "get_flow_request_http_method"];

/// The HTTP methods of Webhook storage.
const HTTP: &[&str] = &["GET", "POST", "PUT", "PATCH"];

/// The image that a flow's storage names, if it does.
///
/// # Errors
/// What is wrong with the storage.
pub(super) fn image(storage: &Value) -> Result<Option<String>, String> {
    let members = match storage {
        Value::Null => return Ok(None),
        Value::Object(members) => members,
        _ => return Err("the flow's storage is no object".to_owned()),
    };
    let name = match members.get("type") {
        None | Some(Value::Null) => {
            return Err(
                "the flow's storage cannot be read: {'type': ['Missing data for required field.']}"
                    .to_owned(),
            );
        }
        Some(Value::String(name)) => name.as_str(),
        Some(other) => return Err(unknown(&other.to_string())),
    };
    let kind = KINDS
        .iter()
        .find(|kind| kind.name == name)
        .ok_or_else(|| unknown(name))?;
    kind.check(members)
        .map_err(|what| format!("the flow's {name} storage cannot be read: {what}"))?;
    if name == "Docker" {
        docker(members).map(Some)
    } else {
        Ok(None)
    }
}

fn unknown(name: &str) -> String {
    format!("the flow's storage cannot be read: {{'type': ['Unsupported value: {name}']}}")
}

impl Kind {
    fn check(&self, members: &Map<String, Value>) -> Result<(), String> {
        for name in self.texts {
            match members.get(*name) {
                Some(Value::String(_)) => {}
                found => return Err(wanted(name, "a string", found)),
            }
        }
        for name in self.objects {
            match members.get(*name) {
                Some(Value::Object(_)) => {}
                found => return Err(wanted(name, "an object", found)),
            }
        }
        for name in self.not_null {
            match members.get(*name) {
                None | Some(Value::String(_)) => {}
                found => return Err(wanted(name, "a string", found)),
            }
        }
        match members.get("flows") {
            None => {}
            Some(Value::Object(flows)) if flows.values().all(Value::is_string) => {}
            found => return Err(wanted("flows", "an object of strings", found)),
        }
        if self.texts == METHODS {
            for name in METHODS {
                let method = members[*name].as_str().unwrap_or_default();
                if !HTTP.contains(&method.to_uppercase().as_str()) {
                    return Err(format!(
                        "{name}: HTTP method '{method}' not recognized; use one of {}",
                        HTTP.join(", ")
                    ));
                }
            }
        }
        Ok(())
    }
}

fn wanted(name: &str, what: &str, found: Option<&Value>) -> String {
    let found = found.map_or("nothing", super::describe);
    format!("{name}: expected {what}, found {found}")
}

fn docker(members: &Map<String, Value>) -> Result<String, String> {
    let text = |name: &str| match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        found => Err(format!(
            "the flow's Docker storage cannot be read: {}",
            wanted(name, "a string", found)
        )),
    };
    let (Some(name), Some(tag)) = (text("image_name")?, text("image_tag")?) else {
        return Err(
            "Docker storage is missing required fields image_name and image_tag".to_owned(),
        );
    };
    let path = join(text("registry_url")?.unwrap_or_default(), name);
    Ok(format!("{path}:{tag}"))
}

/// Joins two parts as paths: an absolute second one replaces the first, empty and `.` parts vanish,
/// and nothing at all is `.`.
fn join(first: &str, second: &str) -> String {
    let path = if second.starts_with('/') {
        second.to_owned()
    } else {
        format!("{first}/{second}")
    };
    // Without a first part the separator above is no root.
    let root = if second.starts_with('/') || first.starts_with('/') {
        "/"
    } else {
        ""
    };
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    match format!("{root}{}", parts.join("/")) {
        path if path.is_empty() => ".".to_owned(),
        path => path,
    }
}
