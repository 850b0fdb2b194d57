//! Label and field selectors.

use std::slice;

use serde_json::Value;

use super::object;

/// One requirement on a label or field.
#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// All requirements of a request on labels and fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Selector {
    /// Reads the selectors of a request for objects of a kind; what is wrong with them otherwise.
    pub(crate) fn parse(labels: &str, fields: &str, kind: &str) -> Result<Self, String> {
        let labels = split(labels)
            .map(label_requirement)
            .collect::<Result<_, _>>();
        let fields = split(fields)
            .map(|part| field_requirement(part, kind))
            .collect::<Result<_, _>>();
        Ok(Self {
            labels: labels
                .map_err(|found| format!("unable to parse requirement: found {found}"))?,
            fields: fields?,
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The name that is asked for, when it is only one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.iter().find_map(|one| match one {
            Requirement::Equals(key, value) if key == "metadata.name" => Some(value.as_str()),
            _ => None,
        })
    }

    /// Names and values, under any of which the store may have indexed each match.
    pub(crate) fn indexed(&self) -> impl Iterator<Item = (&str, &[String])> {
        let labels = self.labels.iter().filter_map(|one| match one {
            Requirement::Equals(key, value) => Some((key.as_str(), slice::from_ref(value))),
            Requirement::In(key, values) => Some((key.as_str(), values.as_slice())),
            _ => None,
        });
        let fields = self.fields.iter().filter_map(|one| match one {
            Requirement::Equals(key, value) if object::INDEXED_FIELDS.contains(&key.as_str()) => {
                Some((key.as_str(), slice::from_ref(value)))
            }
            _ => None,
        });
        labels.chain(fields)
    }

    pub(crate) fn matches(&self, value: &Value) -> bool {
        let labels = &value["metadata"]["labels"];
        let label = |key: &str| labels[key].as_str().map(str::to_owned);
        self.labels.iter().all(|one| one.holds(label))
            && self
                .fields
                .iter()
                .all(|one| one.holds(|key| Some(object::field(value, key))))
    }
}

impl Requirement {
    fn holds(&self, get: impl Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::Equals(key, value) => get(key).as_ref() == Some(value),
            Self::Differs(key, value) => get(key).as_ref() != Some(value),
            Self::In(key, values) => get(key).is_some_and(|have| values.contains(&have)),
            Self::NotIn(key, values) => get(key).is_none_or(|have| !values.contains(&have)),
            Self::Exists(key) => get(key).is_some(),
            Self::Absent(key) => get(key).is_none(),
        }
    }
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn pair(part: &str) -> Option<Requirement> {
    let trimmed = |key: &str, value: &str| (key.trim().to_owned(), value.trim().to_owned());
    if let Some((key, value)) = part.split_once("!=") {
        let (key, value) = trimmed(key, value);
        return Some(Requirement::Differs(key, value));
    }
    let (key, value) = part.split_once("==").or_else(|| part.split_once('='))?;
    let (key, value) = trimmed(key, value);
    Some(Requirement::Equals(key, value))
}

fn label_requirement(part: &str) -> Result<Requirement, String> {
    if let Some(inner) = part.strip_suffix(')') {
        let (head, list) = inner.split_once('(').ok_or_else(|| quoted(part))?;
        let values = list
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        let head = head.trim();
        return match (head.strip_suffix(" notin"), head.strip_suffix(" in")) {
            (Some(key), _) => Ok(Requirement::NotIn(key.trim().to_owned(), values)),
            (None, Some(key)) => Ok(Requirement::In(key.trim().to_owned(), values)),
            (None, None) => Err(quoted(part)),
        };
    }
    match pair(part) {
        Some(Requirement::Equals(_, value) | Requirement::Differs(_, value))
            if value.starts_with('=') =>
        {
            return Err("'=', expected: identifier".to_owned());
        }
        Some(requirement) => return Ok(requirement),
        None => {}
    }
    let (absent, key) = match part.strip_prefix('!') {
        Some(key) => (true, key.trim()),
        None => (false, part),
    };
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(quoted(part));
    }
    Ok(match absent {
        true => Requirement::Absent(key.to_owned()),
        false => Requirement::Exists(key.to_owned()),
    })
}

fn quoted(part: &str) -> String {
    format!("'{part}'")
}

fn field_requirement(part: &str, kind: &str) -> Result<Requirement, String> {
    let requirement = pair(part)
        .ok_or_else(|| format!("invalid selector: '{part}'; can't understand '{part}'"))?;
    match &requirement {
        Requirement::Equals(key, _) | Requirement::Differs(key, _)
            if !object::FIELDS.contains(&key.as_str()) =>
        {
            Err(match kind {
                "Job" => format!("field label {key:?} not supported for Job"),
                "Pod" | "Event" | "Namespace" | "Secret" => {
                    format!("field label not supported: {key}")
                }
                _ => format!(
                    "{key:?} is not a known field selector: only \"metadata.name\", \
                     \"metadata.namespace\""
                ),
            })
        }
        _ => Ok(requirement),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fits(labels: &str, fields: &str) -> bool {
        let pod = json!({
            "metadata": {"name": "a", "labels": {"app": "x", "tier": "db"}},
            "status": {"phase": "Running"},
        });
        Selector::parse(labels, fields, "Pod")
            .unwrap()
            .matches(&pod)
    }

    #[test]
    fn labels_are_selected_by_equality_set_and_existence() {
        assert!(fits("app=x,tier==db", ""));
        assert!(fits("app in (x, y),tier notin (web),app,!gone", ""));
        assert!(fits("gone!=1,gone notin (a)", ""));
        assert!(!fits("app!=x", ""));
        assert!(!fits("app in (y,z)", ""));
        assert!(!fits("gone", ""));
        assert!(!fits("!app", ""));
        assert!(Selector::parse("a b", "", "Pod").is_err());
    }

    #[test]
    fn fields_are_selected_by_equality_and_unknown_ones_refused() {
        assert!(fits("", "metadata.name=a,status.phase!=Failed"));
        assert!(!fits("", "status.phase=Pending"));
        assert!(Selector::parse("", "spec.colour=red", "Pod").is_err());
    }
}
