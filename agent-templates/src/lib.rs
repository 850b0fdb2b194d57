//! Job templates from files.
//!
//! - [`file`]: [`FileTemplates`], templates on this machine.
#![warn(missing_docs)]

pub mod file;

pub use file::FileTemplates;
