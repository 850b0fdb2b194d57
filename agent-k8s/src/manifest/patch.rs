//! The cluster owner's last word on every Job.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::weight::weight;
use crate::yaml;

/// How much memory the operations of a patch may copy, in bytes.
const LARGEST_COPY: usize = 8 << 20;

/// A change to every manifest: a JSON Patch, which is a list of operations, or a JSON Merge Patch,
/// which is a mapping.
#[derive(Debug, Clone)]
pub struct JobPatch {
    name: String,
    change: Change,
}

#[derive(Debug, Clone)]
enum Change {
    Operations(Patch),
    Merge(Value),
}

impl JobPatch {
    /// Reads a patch, in YAML or JSON; `name` stands for it in messages.
    ///
    /// # Errors
    /// The place and what was expected there.
    pub fn parse(name: impl Into<String>, text: &[u8]) -> Result<Self, String> {
        let name = name.into();
        let content = yaml::parse(text).map_err(|error| format!("{name}, {error}"))?;
        let change = match content {
            Value::Object(_) => Change::Merge(content),
            Value::Array(_) => Change::Operations(
                serde_path_to_error::deserialize(&content)
                    .map_err(|error| format!("{name} is no JSON Patch: {error}"))?,
            ),
            other => {
                return Err(format!(
                    "{name} is neither a JSON Patch (a list) nor a JSON Merge Patch (a mapping) but {}",
                    super::shape::describe(&other)
                ));
            }
        };
        Ok(Self { name, change })
    }

    /// Changes a manifest.
    ///
    /// # Errors
    /// The operation that does not apply, and why.
    pub(super) fn apply(&self, manifest: &mut Value) -> Result<(), String> {
        match &self.change {
            Change::Merge(patch) => {
                json_patch::merge(manifest, patch);
                Ok(())
            }
            Change::Operations(patch) => {
                let mut copied = 0;
                for (index, operation) in patch.0.iter().enumerate() {
                    let place = format!("operation {index} ({})", name_of(operation));
                    if let PatchOperation::Copy(copy) = operation
                        && let Some(source) = copy.from.resolve(manifest).ok()
                    {
                        copied += weight(source);
                        if copied > LARGEST_COPY {
                            return Err(format!(
                                "the job patch {} copies more than {} MiB, at {place}; copy less",
                                self.name,
                                LARGEST_COPY >> 20
                            ));
                        }
                    }
                    json_patch::patch(manifest, std::slice::from_ref(operation)).map_err(
                        |error| {
                            format!(
                                "the job patch {} does not apply: operation {index} ({} {}): {}",
                                self.name,
                                name_of(operation),
                                error.path,
                                error.kind
                            )
                        },
                    )?;
                }
                Ok(())
            }
        }
    }

    /// What the patch is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn name_of(operation: &PatchOperation) -> &'static str {
    match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    }
}
