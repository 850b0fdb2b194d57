//! The GraphQL API of a Prefect 1 server, with what agents use of it.
//!
//! It behaves as the open-source server does, and on request as Cloud does where the two differ:
//! see [`PrefectApiBuilder::cloud`] and [`PrefectApiBuilder::check_versions`].

mod api;
mod endpoint;
mod filter;
mod inputs;
mod objects;
mod rows;
mod scalars;
mod schema;
mod seed;
mod shared;
mod states;
mod store;

pub use api::{FlowRunSnapshot, PrefectApi, PrefectApiBuilder};
pub use rows::{AgentRow, Flow, FlowRunRow, LogRow, StateRecord, TaskRunRow};
pub use seed::{FlowRunSeed, kubernetes_run, verbatim};
pub use shared::Auth;
