//! Where settings are found: flags, variables, configuration; and what came of each.

use agent_core::shown::{address, scrub};
use agent_templates::location;

use crate::config::{Config, Origin};

/// One setting as it takes effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Prefect's name of the setting, or the flag's.
    pub name: &'static str,
    /// Its value; secrets are masked.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A value and where it came from.
pub(super) type Given<T> = (T, Origin);

/// Settings as they are found, one by one.
pub(super) struct Sources<'a> {
    pub(super) config: &'a Config,
    pub(super) effective: Vec<Effective>,
}

impl Sources<'_> {
    pub(super) fn record(&mut self, name: &'static str, value: impl Into<String>, origin: Origin) {
        self.effective.push(Effective {
            name,
            value: shown(name, &value.into()),
            origin,
        });
    }

    /// A flag that is not empty, else a setting of the configuration.
    pub(super) fn pick(
        &self,
        flag: &'static str,
        given: &Option<String>,
        key: &str,
    ) -> Option<Given<String>> {
        flag_given(flag, given).or_else(|| Some((self.config.text(key)?, self.config.origin(key))))
    }

    /// A flag that is not empty, else a variable that is not.
    pub(super) fn pick_variable(
        &self,
        flag: &'static str,
        given: &Option<String>,
        variable: &str,
    ) -> Option<Given<String>> {
        flag_given(flag, given).or_else(|| {
            let text = self.config.variable(variable)?;
            (!text.is_empty()).then(|| (text.to_owned(), Origin::Variable(variable.to_owned())))
        })
    }

    /// Records what was found, or a default.
    pub(super) fn settle(
        &mut self,
        name: &'static str,
        found: Option<Given<String>>,
        default: &str,
    ) -> Given<String> {
        let (value, origin) = found.unwrap_or_else(|| (default.to_owned(), Origin::Default));
        self.record(name, &value, origin.clone());
        (value, origin)
    }

    pub(super) fn show(
        &mut self,
        name: &'static str,
        found: Option<&Given<String>>,
        otherwise: &str,
    ) {
        match found {
            Some((value, origin)) => self.record(name, value, origin.clone()),
            None => self.record(name, otherwise, Origin::Default),
        }
    }
}

/// The value of a setting as it may be shown: addresses without credentials.
fn shown(name: &str, value: &str) -> String {
    match name {
        "cloud.api" | "cloud.agent.agent_address" => address(value),
        "--job-template" | "--job-patch" => location(value),
        _ => scrub(value).into_owned(),
    }
}

pub(super) fn flag_given(flag: &'static str, given: &Option<String>) -> Option<Given<String>> {
    let text = given.as_ref().filter(|text| !text.is_empty())?;
    Some((text.clone(), Origin::Flag(flag)))
}
