//! The programs of a cluster, compiled from the Go module in `xtask/kubernetes` into one binary,
//! once for each version of the module.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The module that is compiled, and its files.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");
const FILES: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// The package whose variables hold the version that the programs report.
const VERSION: &str = "k8s.io/component-base/version";

/// The binary, built unless the cache has it.
pub(crate) fn kubernetes() -> Result<PathBuf> {
    let cache = cache()?;
    let go_mod = std::fs::read_to_string(Path::new(MODULE).join("go.mod"))?;
    let version = required(&go_mod, "k8s.io/kubernetes")
        .with_context(|| format!("{MODULE}/go.mod does not require k8s.io/kubernetes"))?;
    let binary = cache.join(format!("kubernetes-{version}-{}", fingerprint()?));
    if binary.exists() {
        return Ok(binary);
    }
    println!(
        "Building Kubernetes {version} into {} (some minutes)...",
        cache.display()
    );
    build(version, &cache, &binary)?;
    Ok(binary)
}

/// The folder for what is built once and is the same for every clone.
fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let cache = base.join("prefect-kubernetes-agent");
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create {}", cache.display()))?;
    Ok(cache)
}

fn build(version: &str, cache: &Path, binary: &Path) -> Result<()> {
    let (major, minor) = numbers(version).with_context(|| format!("{version} is no version"))?;
    // Under its name only when it is whole.
    let unfinished = binary.with_extension(format!("unfinished-{}", std::process::id()));
    let status = Command::new(go())
        .args(["build", "-mod=readonly", "-trimpath", "-p", "2", "-ldflags"])
        .arg(format!(
            "-s -w -X {VERSION}.gitVersion={version} -X {VERSION}.gitMajor={major} -X {VERSION}.gitMinor={minor}"
        ))
        .arg("-o")
        .arg(&unfinished)
        .arg(".")
        .current_dir(MODULE)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", cache.join("go-build"))
        .status()
        .context("cannot run go; install Go 1.26 or newer (https://go.dev/dl)")?;
    ensure!(status.success(), "Kubernetes {version} does not build");
    std::fs::rename(&unfinished, binary).context("cannot put the binary into the cache")
}

/// `go`, also where its own installation puts it without changing PATH.
fn go() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::env::split_paths(&paths).chain([PathBuf::from("/usr/local/go/bin")]);
    let found = paths.map(|path| path.join("go")).find(|go| go.exists());
    found.unwrap_or_else(|| "go".into())
}

/// Tells one state of the module's files from every other.
fn fingerprint() -> Result<String> {
    let mut hash = Sha256::new();
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
}
