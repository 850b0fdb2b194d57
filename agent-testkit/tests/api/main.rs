//! The servers, as their clients see them.

mod courses;
mod kubectl;
mod kubernetes;
mod prefect;
mod support;
