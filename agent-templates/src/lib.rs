//! Job templates from files and other places.
//!
//! - [`templates`]: [`Templates`], all places together; what most callers want.
//! - [`settings`]: [`TemplateSettings`], what the owner of an agent decides about templates.
//! - [`scheme`]: a [`Scheme`], the kinds of places, as allow lists name them.
//! - [`file`]: [`FileTemplates`], templates on this machine.
//! - `http`: `HttpTemplates`, templates from web servers; feature `http`.
//! - `s3`: `S3Templates`, templates from S3; feature `s3`.
//! - `gcs`: `GcsTemplates`, templates from Google Cloud Storage; feature `gcs`.
//!
//! Each place remembers what it read: a template is fetched once and after that only asked about,
//! at most once a second, once for all who wait. A place that is down is bridged by the last copy
//! for some minutes; one that denies a template, or has it no more, is not.
#![warn(missing_docs)]

mod cache;
pub mod file;
#[cfg(feature = "gcs")]
pub mod gcs;
#[cfg(feature = "http")]
pub mod http;
mod place;
#[cfg(any(feature = "gcs", feature = "http", feature = "s3"))]
mod remote;
#[cfg(feature = "s3")]
pub mod s3;
pub mod scheme;
pub mod settings;
mod shown;
pub mod templates;

pub use file::FileTemplates;
#[cfg(feature = "gcs")]
pub use gcs::GcsTemplates;
#[cfg(feature = "http")]
pub use http::HttpTemplates;
pub use place::LARGEST;
#[cfg(feature = "s3")]
pub use s3::S3Templates;
pub use scheme::{Scheme, UnknownScheme};
pub use settings::TemplateSettings;
pub use shown::shown as location;
pub use templates::Templates;
