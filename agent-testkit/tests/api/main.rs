//! The servers, as their clients see them.

mod prefect;
mod support;
