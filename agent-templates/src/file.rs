//! Templates on this machine. Those that flows name can be confined to one directory.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_core::{
    Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore, async_trait,
};

use crate::cache::Cached;
use crate::place::{Fetched, LARGEST, Place, too_large, unsupported};
use crate::shown::shown;
use crate::{Scheme, TemplateSettings};

/// How long a file must have been left alone before its times tell whether it has changed: file
/// systems do not tell apart what happens within some milliseconds, some not within two seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// Reads templates from files: plain paths, `file:`, `local:` and `agent:`.
#[derive(Debug)]
pub struct FileTemplates {
    cached: Cached<FilePlace>,
}

impl FileTemplates {
    /// Relative paths start at `base`, and everything else is as usual.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self::with_settings(&TemplateSettings {
            base: base.into(),
            ..TemplateSettings::default()
        })
    }

    /// Files as these settings want them. Which schemes are allowed is for
    /// [`Templates`](crate::Templates) to check.
    pub fn with_settings(settings: &TemplateSettings) -> Self {
        let place = FilePlace {
            base: settings.base.clone(),
            flow_dir: settings.flow_dir.clone(),
        };
        Self {
            cached: Cached::new(place, settings),
        }
    }
}

#[async_trait]
impl TemplateStore for FileTemplates {
    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Arc<Template>> {
        self.cached.load(location, origin).await
    }
}

#[derive(Debug)]
struct FilePlace {
    base: PathBuf,
    flow_dir: Option<PathBuf>,
}

#[async_trait]
impl Place for FilePlace {
    async fn fetch(
        &self,
        location: &str,
        origin: TemplateOrigin,
        known: Option<&str>,
    ) -> Result<Fetched> {
        let parts = TemplateLocation::parse(location);
        if !Scheme::of(&parts).is_some_and(Scheme::is_file) {
            return Err(unsupported(location));
        }
        if parts.path.is_empty() {
            return Err(Error::permanent(format!(
                "the job template {:?} names no file",
                shown(location)
            )));
        }
        let confined = match origin {
            TemplateOrigin::Flow => self.flow_dir.clone(),
            TemplateOrigin::Agent => None,
        };
        let path = confined.as_ref().unwrap_or(&self.base).join(parts.path);
        let (location, known) = (location.to_owned(), known.map(str::to_owned));
        let read =
            move || read(&path, confined.as_deref(), known.as_deref()).map_err(|f| f.at(&location));
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(Error::transient(format!("reading stopped: {error}"))))
    }
}

/// Why a file is not read.
enum Failed {
    Outside,
    NoDirectory(PathBuf, io::Error),
    NotAFile,
    TooLarge(u64),
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failed {
    fn at(self, location: &str) -> Error {
        let shown = shown(location);
        match self {
            Self::Outside => Error::permanent(format!(
                "the job template {shown} is not below the directory for templates of flows; put it there (--flow-template-dir), without symbolic links that leave it"
            )),
            Self::NoDirectory(dir, error) => Error::permanent(format!(
                "cannot read the job template {shown}: the directory for templates of flows, {}: {error}; check --flow-template-dir",
                dir.display()
            )),
            Self::NotAFile => Error::permanent(format!(
                "the job template {shown} is not a file; name a file"
            )),
            Self::TooLarge(size) => too_large(location, Some(size)),
            Self::Io(error) if is_passing(&error) => {
                Error::transient(format!("cannot read the job template {shown}: {error}"))
            }
            Self::Io(error) => Error::permanent(format!(
                "cannot read the job template {shown}: {error}; check the path, and that the agent may read it where it runs"
            )),
        }
    }
}

/// What can be better the next time: a network file system that does not answer, too many open
/// files.
fn is_passing(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
    ) && !error.to_string().contains("symbolic links")
}

fn read(path: &Path, confined: Option<&Path>, known: Option<&str>) -> Result<Fetched, Failed> {
    if let Some(dir) = confined
        && !tidied(path).starts_with(tidied(dir))
    {
        return Err(Failed::Outside);
    }
    // Opening something else than a file, a pipe for instance, may never end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Failed::NotAFile);
    }
    let file = File::open(path)?;
    if let Some(dir) = confined {
        let real = dir
            .canonicalize()
            .map_err(|error| Failed::NoDirectory(dir.to_owned(), error))?;
        if !opened_path(&file, path)?.starts_with(real) {
            return Err(Failed::Outside);
        }
    }
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(Failed::NotAFile);
    }
    let tag = tag(&about);
    if known.is_some() && tag.as_deref() == known {
        return Ok(Fetched::NotModified);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > LARGEST {
        return Err(Failed::TooLarge(about.len().max(LARGEST as u64 + 1)));
    }
    Ok(Fetched::Found { bytes, tag })
}

/// A path without `.` and `..`, as if no part of it were a symbolic link.
fn tidied(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                tidy.pop();
            }
            Component::CurDir => {}
            part => tidy.push(part),
        }
    }
    tidy
}

/// Where the opened file is, whatever became of the path since it was opened.
#[cfg(target_os = "linux")]
fn opened_path(file: &File, _: &Path) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(not(target_os = "linux"))]
fn opened_path(_: &File, path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// What tells a changed file apart; `None` while it is too young for that.
fn tag(about: &Metadata) -> Option<String> {
    let modified = about.modified().ok()?;
    let age = SystemTime::now().duration_since(modified).ok()?;
    (age > SETTLED).then(|| format!("{modified:?} {} {}", about.len(), identity(about)))
}

#[cfg(unix)]
fn identity(about: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    let (seconds, nanos) = (about.ctime(), about.ctime_nsec());
    format!("{} {} {seconds}.{nanos}", about.dev(), about.ino())
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> String {
    String::new()
}

#[cfg(test)]
mod tests;
