//! The flags of what flows may use, which `start` and `install` share.

use super::PullPolicy;
use super::values::quantity;

/// What flows get that say nothing of it themselves.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Jobs")]
pub struct ResourceArgs {
    /// The memory that is reserved for a flow which says nothing of memory, such as 512Mi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub mem_request: Option<String>,
    /// The memory after which such a flow is killed
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub mem_limit: Option<String>,
    /// The processor time that is reserved for a flow which says nothing of it, such as 500m
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu_request: Option<String>,
    /// The processor time that such a flow gets at most
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu_limit: Option<String>,
    /// When the image of a flow is pulled that does not say
    #[arg(long, value_enum, ignore_case = true, value_name = "POLICY")]
    pub image_pull_policy: Option<PullPolicy>,
}

impl ResourceArgs {
    /// The flags with their values, in order.
    pub(crate) fn flags(&self) -> [(&'static str, Option<String>); 5] {
        [
            ("--mem-request", self.mem_request.clone()),
            ("--mem-limit", self.mem_limit.clone()),
            ("--cpu-request", self.cpu_request.clone()),
            ("--cpu-limit", self.cpu_limit.clone()),
            (
                "--image-pull-policy",
                self.image_pull_policy.map(|policy| policy.to_string()),
            ),
        ]
    }
}
