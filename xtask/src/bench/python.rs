//! The Python agent in a virtual environment that is made once and kept.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What the agent needs today: newer releases of its dependencies broke it.
const REQUIREMENTS: &[&str] = &[
    "prefect[kubernetes]==1.4.1",
    "marshmallow<3.19",
    "marshmallow-oneofschema<3.1",
    "setuptools<81",
];

/// The virtual environment, made if it is not there yet.
pub(super) fn environment() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cache")))
        .context("there is no home directory for the cache")?;
    let root = cache.join("prefect-kubernetes-agent/bench-python");
    let installed = root.join("installed.txt");
    let wanted = REQUIREMENTS.join("\n");
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(root);
    }
    let python = interpreter()?;
    eprintln!("Installing the Python agent into {}...", root.display());
    std::fs::create_dir_all(&root)
        .with_context(|| format!("cannot make the directory {}", root.display()))?;
    run(Command::new(&python)
        .args(["-m", "venv", "--clear"])
        .arg(&root))?;
    let pip = root.join("bin/pip");
    run(Command::new(pip)
        .args(["install", "--quiet"])
        .args(REQUIREMENTS))?;
    std::fs::write(&installed, wanted)?;
    Ok(root)
}

/// Python 3.9, the last one that this version of Prefect runs on: from PATH, or of pyenv.
fn interpreter() -> Result<PathBuf> {
    let works = |python: &Path| {
        let version = Command::new(python).arg("--version").output();
        version.is_ok_and(|told| told.stdout.starts_with(b"Python 3.9."))
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("python3.9"));
    let versions = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".pyenv")))
        .and_then(|root| std::fs::read_dir(root.join("versions")).ok());
    let of_pyenv = versions.into_iter().flatten().flatten();
    let of_pyenv = of_pyenv
        .filter(|version| version.file_name().as_encoded_bytes().starts_with(b"3.9."))
        .map(|version| version.path().join("bin/python3.9"));
    on_path
        .chain(of_pyenv)
        .find(|python| works(python))
        .context(
            "the Python agent needs Python 3.9, which is neither on PATH as python3.9 nor among the \
             versions of pyenv; install it, for instance with `pyenv install 3.9`",
        )
}

fn run(command: &mut Command) -> Result<()> {
    let shown: OsString = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", shown.display()))?;
    ensure!(status.success(), "{} ended with {status}", shown.display());
    Ok(())
}
