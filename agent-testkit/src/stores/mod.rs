//! Places for files, as real servers from Python packages: an environment that is installed once,
//! and processes that end with whoever started them, however that ends.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The packages, each in one version with the digests of its files.
const REQUIREMENTS: &str = include_str!("requirements.txt");
/// Runs a command until its own input ends, which it does when its parent is gone.
const SUPERVISE: &str = "
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
server.kill()
";
/// How long a server may take to listen, and how often another port is tried.
const START: Duration = Duration::from_secs(60);
const STARTS: usize = 3;

/// Installed servers.
#[derive(Clone, Debug)]
pub struct Stores {
    venv: PathBuf,
}

impl Stores {
    /// Installs the servers into a folder, from PyPI, unless they are in it.
    ///
    /// # Errors
    /// There is no Python 3.11 or newer with venv, or PyPI cannot be reached.
    pub fn install(folder: &Path) -> Result<Self> {
        let place = || format!("cannot write to {}", folder.display());
        fs::create_dir_all(folder).with_context(place)?;
        // Other processes may be at it, too.
        let lock = File::create(folder.join("lock")).with_context(place)?;
        lock.lock().with_context(place)?;
        let venv = folder.join("venv");
        let installed = venv.join("installed.txt");
        if fs::read_to_string(&installed).is_ok_and(|text| text == REQUIREMENTS) {
            return Ok(Self { venv });
        }
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv))
        .context(
            "no environment for Python packages; install python3-venv, Python 3.11 or newer",
        )?;
        let wanted = folder.join("requirements.txt");
        fs::write(&wanted, REQUIREMENTS).with_context(place)?;
        let stores = Self { venv };
        let pip = ["-m", "pip", "install", "--quiet", "-r"];
        run(stores.python().args(pip).arg(&wanted))
            .context("the packages are not installed, which need PyPI and Python 3.11 or newer")?;
        fs::write(&installed, REQUIREMENTS).with_context(place)?;
        Ok(stores)
    }

    /// AWS, as far as moto plays it, with further variables in its environment.
    ///
    /// # Errors
    /// It does not start.
    pub fn moto(&self, environment: &[(&str, &str)]) -> Result<Store> {
        self.start(|port| {
            let mut command = self.supervised();
            command.arg(self.venv.join("bin/moto_server"));
            command.args(["-H", "127.0.0.1", "-p", port]);
            command.envs(environment.iter().copied());
            command
        })
    }

    /// Google Cloud Storage, as far as fake-gcs-server plays it.
    ///
    /// # Errors
    /// It does not start, or is not made for this machine.
    pub fn gcs(&self) -> Result<Store> {
        let binary = self.gcs_binary()?;
        self.start(|port| {
            let mut command = self.supervised();
            command.arg(&binary);
            command.args(["-backend", "memory", "-scheme", "http"]);
            command.args(["-log-level", "error"]);
            command.args(["-host", "127.0.0.1", "-port", port]);
            command
        })
    }

    /// The web server of Python's library, on the files of a directory.
    ///
    /// # Errors
    /// It does not start.
    pub fn web(&self, directory: &Path) -> Result<Store> {
        self.start(|port| {
            let mut command = self.supervised();
            command.arg(self.venv.join("bin/python"));
            command.args(["-m", "http.server", "--bind", "127.0.0.1"]);
            command.arg("--directory").arg(directory).arg(port);
            command
        })
    }

    /// The program of [`Self::gcs`], which the package does not have for every machine.
    ///
    /// # Errors
    /// It is not made for this machine.
    pub fn gcs_binary(&self) -> Result<PathBuf> {
        let here = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        let binary = find(&self.venv, "fake-gcs-server-linux-amd64").filter(|_| here);
        binary.context("fake-gcs-server is not made for this machine")
    }

    /// A private key of nobody, as PEM.
    ///
    /// # Errors
    /// Python does not run.
    pub fn private_key(&self) -> Result<String> {
        const MAKE: &str = "
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import *
key = rsa.generate_private_key(65537, 2048)
print(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
";
        run(self.python().args(["-c", MAKE]))
    }

    fn python(&self) -> Command {
        Command::new(self.venv.join("bin/python"))
    }

    fn supervised(&self) -> Command {
        let mut command = self.python();
        command.args(["-c", SUPERVISE]);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts a server on a port of its own.
    fn start(&self, command: impl Fn(&str) -> Command) -> Result<Store> {
        for _ in 0..STARTS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            drop(listener);
            let mut command = command(&address.port().to_string());
            let supervisor = command.spawn().context("cannot run Python")?;
            let mut store = Store {
                supervisor,
                address,
            };
            if store.is_up() {
                return Ok(store);
            }
        }
        bail!("the server did not start, {STARTS} times")
    }
}

/// Runs a command to its end; what it printed.
fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    // What went wrong comes last; venv says it where others print what they have done.
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last = said.trim_end().lines().last().unwrap_or_default();
    ensure!(
        output.status.success(),
        "{shown}: {}: {last}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A running server, which ends when this is dropped.
#[derive(Debug)]
pub struct Store {
    supervisor: Child,
    address: SocketAddr,
}

impl Store {
    /// Where it listens: a port of its own on 127.0.0.1, without TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }

    fn is_up(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < START {
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            let ended = self.supervisor.try_wait();
            if ended.is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
    }
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            return Some(path);
        }
        if path.is_dir()
            && !path.is_symlink()
            && let Some(found) = find(&path, name)
        {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_last_is_in_its_error_wherever_it_says_it() {
        let scripts = [
            "echo found; echo no venv; exit 1",
            "echo found; echo no venv >&2; exit 1",
        ];
        for script in scripts {
            let error = run(Command::new("sh").args(["-c", script])).expect_err("it failed");
            let error = error.to_string();
            assert!(error.ends_with("exit status: 1: no venv"), "{error}");
        }
    }
}
