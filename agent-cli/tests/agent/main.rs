//! The real binary against the testkit's servers, over real HTTP on both sides.

mod checking;
mod deploying;
mod replacing;
mod starting;
mod stopping;
mod supervising;
mod world;
