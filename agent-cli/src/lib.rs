//! The parts of the `agent-cli` binary.
//!
//! - [`args`]: the command line.
//! - [`settings`]: flags and environment, made whole.
//! - [`start`]: the agent itself.
//! - [`endpoint`]: its HTTP endpoint.
//! - [`logging`]: its own log.

pub mod args;
pub mod config;
pub mod endpoint;
pub mod logging;
pub mod python;
pub mod settings;
pub mod start;
