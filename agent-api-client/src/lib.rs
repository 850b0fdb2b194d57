//! The Prefect 1 GraphQL API as a source of flow runs.
//!
//! - [`client`]: [`PrefectApi`] and its [`ApiSettings`]: who the agent is and what it asks.
//! - [`error`]: [`ApiError`], typed by what came back.
//! - [`row`]: a row of the API's `flow_run` query, and the flow run it describes.
//! - `rows`: the rows of an answer, read one by one.
//! - `decode`: what answers mean, without the requests; for benchmarks.
//! - `source`: the client as a [`agent_core::FlowRunSource`]: claims whose outcome is read back
//!   when an answer was lost.
//! - `transport`: one pooled HTTP client; headers, time limits, retries, and what each answer
//!   means.
//! - `clock`, `redirects`: how far the API's clock is believed, and its redirects followed.
//! - `operations`: the GraphQL operations, checked against `schema.graphql` at compile time.
//! - `state`, `time`: states and times as Prefect writes them.
#![warn(missing_docs)]

pub mod client;
mod clock;
#[doc(hidden)]
pub mod decode;
pub mod error;
mod operations;
mod redirects;
pub mod row;
mod rows;
mod source;
mod state;
mod time;
mod transport;

pub use client::{ApiSettings, Backend, PrefectApi};
pub use error::{ApiError, Cause};
pub use row::FlowRunRow;
