//! The servers, as their clients see them.

mod contract;
mod courses;
mod kube_rs;
mod kubectl;
mod kubernetes;
mod outages;
mod prefect;
mod support;
mod watches;
