//! The real binary against the testkit's servers, over real HTTP on both sides.

mod again;
mod checking;
mod crashing;
mod deploying;
mod isolation;
mod observing;
mod replacing;
mod replicas;
mod starting;
mod stopping;
mod supervising;
mod tls;
mod world;
