//! The namespaces that a local cluster lives in, and that nothing of it survives: networks,
//! mounts and processes end with the first process, control groups and files are removed after it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::interrupt::unless_interrupted;

/// The programs that a local cluster needs, and Debian's packages that they come from.
const PROGRAMS: [(&str, &str); 7] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("busybox", "busybox-static"),
    ("openssl", "openssl"),
    ("unshare", "util-linux"),
];
/// Where programs of root's are, also when the PATH is that of somebody who uses sudo.
const OF_ROOT: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// What the namespaces begin with.
const SCRIPT: &str = include_str!("namespace.sh");
/// What is hidden in them, because the cluster would write to it.
const HIDDEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];
const CGROUPS: &str = "/sys/fs/cgroup";
/// What the kubelet wants for its pods in control groups of version 2, as far as the machine has it.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];
/// What the names of folders and control groups begin with; the process follows.
const PREFIX: &str = "prefect-agent-e2e-";
/// How long the processes of a cluster may take to be gone after they were killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An error that says what is missing for a local cluster on this machine.
pub(crate) fn check() -> Result<()> {
    ensure!(
        cfg!(target_os = "linux"),
        "a local cluster needs Linux; use --cluster kind"
    );
    let root = std::fs::metadata("/proc/self").is_ok_and(|process| {
        use std::os::unix::fs::MetadataExt;
        process.uid() == 0
    });
    ensure!(
        root,
        "a local cluster needs root; use sudo, or --cluster kind"
    );
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_among(&path(), program))
        .map(|(_, package)| *package)
        .collect();
    if !Path::new(super::config::PLUGINS).join("bridge").exists() {
        missing.push("containernetworking-plugins");
    }
    missing.dedup();
    ensure!(
        missing.is_empty(),
        "a local cluster needs more programs: apt-get install {}",
        missing.join(" ")
    );
    nothing_is_hidden()
}

/// An error when something that the cluster or the tests need is not seen in the namespaces.
fn nothing_is_hidden() -> Result<()> {
    let temporary = std::env::temp_dir();
    for (path, elsewhere) in [
        (std::env::current_exe()?, "set CARGO_TARGET_DIR"),
        (super::super::binaries::cache()?, "set XDG_CACHE_HOME"),
        (temporary.canonicalize().unwrap_or(temporary), "set TMPDIR"),
        (env!("CARGO_MANIFEST_DIR").into(), "move the clone"),
    ] {
        ensure!(
            !is_hidden(&path),
            "{} is not seen in a local cluster, which hides {}; {elsewhere}",
            path.display(),
            HIDDEN.join(", ")
        );
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    HIDDEN.iter().any(|hidden| path.starts_with(hidden))
}

/// Whether a program can be run by its name.
pub(crate) fn is_on_path(program: &str) -> bool {
    is_among(&std::env::var_os("PATH").unwrap_or_default(), program)
}

fn is_among(paths: &OsStr, program: &str) -> bool {
    std::env::split_paths(paths).any(|path| path.join(program).exists())
}

/// The PATH inside the namespaces.
fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::env::split_paths(&path).chain(OF_ROOT.map(PathBuf::from));
    std::env::join_paths(paths).unwrap_or(path.clone())
}

/// A folder and a control group for one cluster, named after this process.
pub(crate) struct Sandbox {
    name: String,
    folder: PathBuf,
    script: PathBuf,
    /// The controllers that had to be enabled for it.
    enabled: Vec<&'static str>,
}

impl Sandbox {
    /// Makes both, and removes those of processes that were killed.
    pub(crate) fn new() -> Result<Self> {
        remove_abandoned();
        let mut sandbox = Self::of(&std::process::id().to_string());
        std::fs::create_dir_all(sandbox.cluster())
            .with_context(|| format!("cannot create {}", sandbox.folder.display()))?;
        std::fs::write(&sandbox.script, SCRIPT)?;
        sandbox.enabled = enable_controllers(Path::new(CGROUPS))?;
        sandbox.make_cgroups()?;
        Ok(sandbox)
    }

    /// Those of a process.
    fn of(pid: &str) -> Self {
        let name = format!("{PREFIX}{pid}");
        let folder = std::env::temp_dir().join(&name);
        Self {
            script: folder.join("namespace.sh"),
            folder,
            name,
            enabled: Vec::new(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the cluster's own files, which are kept in memory and go with it.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.folder.join("cluster")
    }

    /// The control group, as a path under each hierarchy's root.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.name)
    }

    /// Runs a program in namespaces of its own, to its end or until somebody stops this process.
    pub(crate) async fn run(&self, program: &Path, args: &[&str]) -> Result<ExitStatus> {
        let mut command = Command::new("setpriv");
        command
            // Even when this process is killed, what it started does not outlive it.
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(["--mount", "--net", "--uts", "--ipc", "--pid"])
            .args(["--fork", "--kill-child=KILL"])
            .args(["/bin/sh"])
            .arg(&self.script)
            .arg(super::config::NODE_NAME)
            .arg(HIDDEN.join(" "))
            .arg(self.cluster())
            .arg(program)
            .args(args)
            .env("PATH", path())
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot make namespaces")?;
        let ended = unless_interrupted(async {
            let status = child.wait().await;
            status.context("cannot wait for the namespaces")
        });
        let ended = ended.await;
        if ended.is_err() {
            child.kill().await.context("cannot end the namespaces")?;
        }
        ended
    }

    /// The folders of the control group: one for each hierarchy, or the one of version 2.
    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new(CGROUPS);
        let name = &self.name;
        if root.join("cgroup.controllers").exists() {
            return vec![root.join(name)];
        }
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
        hierarchies
            .map(|hierarchy| hierarchy.path())
            .filter(|path| path.join("cgroup.procs").exists() && !path.is_symlink())
            .map(|path| path.join(name))
            .collect()
    }

    fn make_cgroups(&self) -> Result<()> {
        for path in self.cgroups() {
            std::fs::create_dir_all(&path)
                .with_context(|| format!("cannot create the control group {}", path.display()))?;
            // A cpuset takes nobody in before it has processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = path.parent().map(|above| above.join(file));
                if let Some(all) = above.and_then(|above| std::fs::read(above).ok())
                    && path.join(file).exists()
                {
                    std::fs::write(path.join(file), all)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let began = Instant::now();
        let mut left = self.cgroups();
        loop {
            // What was killed takes a moment to be gone.
            left.retain(|path| path.exists() && remove_cgroup(path).is_err());
            if left.is_empty() || began.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if !self.enabled.is_empty() {
            // Where another cluster uses them by now, they stay.
            let _ = switch(Path::new(CGROUPS), '-', &self.enabled);
        }
        if std::fs::remove_dir_all(&self.folder).is_err() {
            left.push(self.folder.clone());
        }
        for path in left {
            eprintln!("{} could not be removed", path.display());
        }
    }
}

/// Removes what is left of processes that had no time to do so.
fn remove_abandoned() {
    let cgroups = Path::new(CGROUPS);
    let folders = [
        std::env::temp_dir(),
        cgroups.to_owned(),
        cgroups.join("memory"),
    ];
    for entry in folders
        .iter()
        .flat_map(std::fs::read_dir)
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Sandbox::of(pid));
        }
    }
}

/// Enables what the kubelet wants for the groups in this one, of version 2; what was not enabled.
fn enable_controllers(root: &Path) -> Result<Vec<&'static str>> {
    let offered = root.join("cgroup.controllers");
    if !offered.exists() {
        return Ok(Vec::new());
    }
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path);
        text.with_context(|| format!("cannot read {}", path.display()))
    };
    let offered = read(&offered)?;
    let enabled = read(&root.join("cgroup.subtree_control"))?;
    let is_in = |text: &str, name: &str| text.split_whitespace().any(|one| one == name);
    let mut missing = CONTROLLERS.to_vec();
    missing.retain(|name| is_in(&offered, name) && !is_in(&enabled, name));
    if !missing.is_empty() {
        switch(root, '+', &missing).with_context(|| {
            let (names, root) = (missing.join(", "), root.display());
            format!("cannot enable the controllers {names} for the control groups in {root}")
        })?;
    }
    Ok(missing)
}

/// Enables (`+`) or disables (`-`) controllers for the groups in this one.
fn switch(root: &Path, sign: char, controllers: &[&str]) -> std::io::Result<()> {
    let words = controllers.iter().map(|name| format!("{sign}{name}"));
    let words: Vec<String> = words.collect();
    std::fs::write(root.join("cgroup.subtree_control"), words.join(" "))
}

/// Removes a control group and those in it, which have no processes any more.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_a_hidden_folder_is_hidden() {
        assert!(is_hidden(Path::new("/var/lib/jenkins/target/debug/xtask")));
        assert!(!is_hidden(Path::new("/var/libraries/target/debug/xtask")));
    }

    #[test]
    fn what_systemd_leaves_disabled_is_enabled_for_the_kubelet() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text);
        let enabled = || std::fs::read_to_string(root.join("cgroup.subtree_control"));
        // Version 1 has nothing to enable.
        assert!(enable_controllers(root).expect("done").is_empty());

        write("cgroup.controllers", "cpuset cpu io memory hugetlb pids\n").expect("written");
        write("cgroup.subtree_control", "cpu io memory pids\n").expect("written");
        let added = enable_controllers(root).expect("enabled");
        assert_eq!(added, ["cpuset", "hugetlb"]);
        assert_eq!(enabled().expect("text"), "+cpuset +hugetlb");

        // A machine without huge pages does not offer their controller.
        let all = "cpuset cpu memory pids\n";
        write("cgroup.controllers", all).expect("written");
        write("cgroup.subtree_control", all).expect("written");
        assert!(enable_controllers(root).expect("done").is_empty());
        assert_eq!(enabled().expect("text"), all);
    }
}
