//! Servers from Python packages: an environment that is made once, and processes that end with the
//! tests, however they end.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const REQUIREMENTS: &str = include_str!("requirements.txt");
/// Runs a command until its own input ends, which it does when its parent is gone.
const SUPERVISE: &str = "
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
server.kill()
";
const START: Duration = Duration::from_secs(60);
const STARTS: usize = 3;

/// The environment, or why there is none.
pub(crate) fn environment() -> Result<&'static Path, String> {
    static ENVIRONMENT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = ENVIRONMENT.get_or_init(make).as_deref();
    made.map_err(Clone::clone)
}

fn make() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("template-servers");
    let failed = |error: std::io::Error| format!("cannot write to {}: {error}", root.display());
    fs::create_dir_all(&root).map_err(failed)?;
    // Other test processes may be at it, too.
    let lock = File::create(root.join("lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let venv = root.join("venv");
    let installed = venv.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(venv);
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&venv))?;
    let wanted = root.join("requirements.txt");
    fs::write(&wanted, REQUIREMENTS).map_err(failed)?;
    let pip = ["-m", "pip", "install", "--quiet", "-r"];
    run(Command::new(venv.join("bin/python")).args(pip).arg(&wanted))?;
    fs::write(&installed, REQUIREMENTS).map_err(failed)?;
    Ok(venv)
}

/// The Google Cloud Storage server, which the wheel does not have for every machine.
pub(crate) fn gcs_binary() -> Result<PathBuf, String> {
    const NAME: &str = "fake-gcs-server-linux-amd64";
    let binary = find(environment()?, NAME);
    let runs = binary.filter(|_| cfg!(all(target_os = "linux", target_arch = "x86_64")));
    runs.ok_or_else(|| "fake-gcs-server is not made for this machine".to_owned())
}

/// A private key of nobody, as PEM.
pub(crate) fn private_key() -> String {
    const MAKE: &str = "
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import *
key = rsa.generate_private_key(65537, 2048)
print(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
";
    let venv = environment().expect("an environment");
    let made = run(Command::new(venv.join("bin/python")).args(["-c", MAKE]));
    made.expect("a key")
}

fn run(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(format!("{shown}: {}: {last}", output.status))
}

/// A server on a port of its own.
pub(crate) struct Server {
    supervisor: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// AWS, as far as moto plays it.
    pub(crate) fn moto(environment: &[(&str, &str)]) -> Self {
        let venv = self::environment().expect("an environment");
        Self::start(|port| {
            let mut command = supervised(venv);
            command.arg(venv.join("bin/moto_server"));
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command.envs(environment.iter().copied());
            command
        })
    }

    /// Google Cloud Storage, as far as fake-gcs-server plays it.
    pub(crate) fn gcs() -> Self {
        let venv = self::environment().expect("an environment");
        let binary = gcs_binary().expect("a binary");
        Self::start(|port| {
            let mut command = supervised(venv);
            command.arg(&binary);
            command.args([
                "-backend",
                "memory",
                "-scheme",
                "http",
                "-log-level",
                "error",
            ]);
            command.args(["-host", "127.0.0.1", "-port", &port.to_string()]);
            command
        })
    }

    /// The web server of Python's library, on the files of a directory.
    pub(crate) fn web(directory: &Path) -> Self {
        let venv = self::environment().expect("an environment");
        Self::start(|port| {
            let mut command = supervised(venv);
            command.arg(venv.join("bin/python"));
            command.args(["-m", "http.server", "--bind", "127.0.0.1"]);
            command
                .arg("--directory")
                .arg(directory)
                .arg(port.to_string());
            command
        })
    }

    fn start(command: impl Fn(u16) -> Command) -> Self {
        for _ in 0..STARTS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let address = listener.local_addr().expect("bound");
            drop(listener);
            let supervisor = command(address.port()).spawn().expect("Python runs");
            let mut server = Self {
                supervisor,
                address,
            };
            if server.is_up() {
                return server;
            }
        }
        panic!("the server did not start, {STARTS} times");
    }

    fn is_up(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < START {
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            if self
                .supervisor
                .try_wait()
                .is_ok_and(|ended| ended.is_some())
            {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn supervised(venv: &Path) -> Command {
    let mut command = Command::new(venv.join("bin/python"));
    command.args(["-c", SUPERVISE]);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
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
