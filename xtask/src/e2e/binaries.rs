//! The programs of a cluster, compiled from the Go module in `xtask/kubernetes` into one binary,
//! once for each version of the module.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The module that is compiled, and its files.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");
const FILES: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// The package whose variables hold the version that the programs report.
const VERSION: &str = "k8s.io/component-base/version";
/// What the names of binaries in the cache begin with.
const PREFIX: &str = "kubernetes-";
/// When one that nobody uses any more is deleted: not as soon as there is another, for clones that are
/// at different commits share them.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// The binary, built unless the cache has it.
pub(crate) fn kubernetes() -> Result<PathBuf> {
    let cache = cache()?;
    let go_mod = std::fs::read_to_string(Path::new(MODULE).join("go.mod"))?;
    let version = required(&go_mod, "k8s.io/kubernetes")
        .with_context(|| format!("{MODULE}/go.mod does not require k8s.io/kubernetes"))?;
    let arguments = arguments(version)?;
    let binary = cache.join(format!("{PREFIX}{version}-{}", fingerprint(&arguments)?));
    if binary.exists() {
        // Where its use cannot be noted, it is built again some day.
        let _ = File::open(&binary).and_then(|file| file.set_modified(SystemTime::now()));
        return Ok(binary);
    }
    println!(
        "Building Kubernetes {version} into {} (some minutes)...",
        cache.display()
    );
    build(&arguments, &cache, &binary)?;
    remove_unused(&cache, SystemTime::now());
    Ok(binary)
}

/// Deletes binaries that nobody has used for long, and what is left of builds that were stopped.
fn remove_unused(cache: &Path, now: SystemTime) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let is_binary = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let used = entry.metadata().and_then(|metadata| metadata.modified());
        let unused = used.map(|used| now.duration_since(used).unwrap_or_default());
        if is_binary && unused.is_ok_and(|unused| unused > UNUSED) {
            // The next build tries again.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The folder for what is built once and is the same for every clone.
pub(super) fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let cache = base.join("prefect-kubernetes-agent");
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create {}", cache.display()))?;
    Ok(cache)
}

/// How a version is compiled.
fn arguments(version: &str) -> Result<[String; 6]> {
    let (major, minor) = numbers(version).with_context(|| format!("{version} is no version"))?;
    let variables = format!(
        "-s -w -X {VERSION}.gitVersion={version} -X {VERSION}.gitMajor={major} -X {VERSION}.gitMinor={minor}"
    );
    let arguments = [
        "build",
        "-mod=readonly",
        "-trimpath",
        "-p=2",
        "-ldflags",
        &variables,
    ];
    Ok(arguments.map(str::to_owned))
}

fn build(arguments: &[String], cache: &Path, binary: &Path) -> Result<()> {
    // Under its name only when it is whole.
    let unfinished = binary.with_extension(format!("unfinished-{}", std::process::id()));
    let status = Command::new(go())
        .args(arguments)
        .arg("-o")
        .arg(&unfinished)
        .arg(".")
        .current_dir(MODULE)
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", cache.join("go-build"))
        .status()
        .context("cannot run go; install Go 1.26 or newer (https://go.dev/dl)")?;
    ensure!(status.success(), "{MODULE} does not build");
    std::fs::rename(&unfinished, binary).context("cannot put the binary into the cache")
}

/// `go`, also where its own installation puts it without changing PATH.
fn go() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::env::split_paths(&paths).chain([PathBuf::from("/usr/local/go/bin")]);
    let found = paths.map(|path| path.join("go")).find(|go| go.exists());
    found.unwrap_or_else(|| "go".into())
}

/// Tells one state of the module's files, compiled with these arguments for this kind of machine, from
/// every other.
fn fingerprint(arguments: &[String]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(std::env::consts::ARCH);
    hash.update(arguments.concat());
    for file in FILES {
        let path = Path::new(MODULE).join(file);
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        hash.update(text);
    }
    let digest = hash.finalize();
    let digits = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
    Ok(digits.collect())
}

/// The version of a module that a `go.mod` requires.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| *word == "require");
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
    })
}

/// Major and minor of `v1.37.2`.
fn numbers(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.strip_prefix('v')?.split('.');
    Some((parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_go_module() {
        let go_mod = std::fs::read_to_string(Path::new(MODULE).join("go.mod")).expect("a go.mod");
        let version = required(&go_mod, "k8s.io/kubernetes").expect("required");
        assert_eq!(numbers(version).expect("a version").0, "1");
        assert_eq!(required("require a/b v1.2.3", "a/b"), Some("v1.2.3"));
        assert_eq!(required("a/b/c v1.2.3", "a/b"), None);
    }

    #[test]
    fn binaries_that_nobody_uses_any_more_are_deleted() {
        let cache = tempfile::tempdir().expect("a folder");
        for name in ["kubernetes-v1.2.3-old", "kubernetes-v1.2.3-new", "target"] {
            std::fs::write(cache.path().join(name), "").expect("written");
        }
        let then = SystemTime::now() + UNUSED;
        let new = cache.path().join("kubernetes-v1.2.3-new");
        let new = File::open(new).expect("written");
        new.set_modified(then).expect("noted");
        remove_unused(cache.path(), then + Duration::from_secs(60));
        let left = std::fs::read_dir(cache.path()).expect("a folder");
        let left: Vec<_> = left.map(|one| one.expect("an entry").file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(!left.contains(&"kubernetes-v1.2.3-old".into()), "{left:?}");
    }
}
