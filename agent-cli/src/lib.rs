//! The parts of the `agent-cli` binary.
//!
//! - [`args`]: the command line.
//! - [`config`], [`python`]: Prefect's configuration files and variables, and how it writes values.
//! - [`settings`]: flags and configuration, made whole.
//! - [`start`]: the agent itself.
//! - [`check`]: whether everything is there that it needs.
//! - [`render`], [`show`]: the Job and the settings that `start` would use.
//! - [`install`]: the agent's own objects in a cluster.
//! - [`endpoint`]: its HTTP endpoint.
//! - [`logging`]: its own log.
//! - [`manual`]: completions and manual pages.

pub mod args;
pub mod check;
pub mod config;
pub mod endpoint;
pub mod install;
pub mod logging;
pub mod manual;
pub mod metrics;
pub mod python;
pub mod render;
pub mod settings;
pub mod show;
pub mod start;
