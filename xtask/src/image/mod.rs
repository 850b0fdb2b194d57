//! `cargo xtask image`: the agent's image, assembled without a container engine out of the binary,
//! the shared objects it needs, and the CA roots.

mod layer;
mod oci;

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;

pub(crate) use self::layer::Layer;
pub(crate) use self::oci::{Image, Settings};

/// Where Debian, and most others, keep the CA roots; where clients look for them.
const CA_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where other systems keep them.
const OTHER_CA_ROOTS: [&str; 3] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The user of distroless images, which is nobody else's.
const USER: u32 = 65532;

/// The name of the image: the one that `agent-cli install` writes when nobody names another.
pub(crate) const NAME: &str = concat!(
    "localhost/prefect-kubernetes-agent:",
    env!("CARGO_PKG_VERSION")
);

/// The flags of the image.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The binary to put in [default: a release build]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The name of the image
    #[arg(long, value_name = "NAME:TAG", default_value = NAME)]
    name: String,
    /// Where the archive is written to [default: agent-image.tar beside the binary]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the archive and says how large it is.
pub(crate) fn run(options: Options) -> Result<()> {
    let binary = match options.binary {
        Some(binary) => binary,
        None => crate::build_agent(crate::Profile::Release)?,
    };
    let output = options
        .output
        .unwrap_or_else(|| binary.with_file_name("agent-image.tar"));
    let image = agent(&binary)?;
    save(&image, &[&options.name], &output)?;
    let size = std::fs::metadata(&output)?.len();
    println!("{}", output.display());
    println!("name    {}", options.name);
    println!("digest  {}", image.digest());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("size    {:.1} MiB", mib(size));
    for (layer, (compressed, plain)) in ["system", "agent"].into_iter().zip(image.layer_sizes()) {
        println!(
            "{layer:7} {:.1} MiB, unpacked {:.1} MiB",
            mib(compressed),
            mib(plain)
        );
    }
    Ok(())
}

/// Writes an image's archive into a file.
pub(crate) fn save(image: &Image, names: &[&str], path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    image
        .write(names, BufWriter::new(file))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The agent's image.
pub(crate) fn agent(binary: &Path) -> Result<Image> {
    let content = read(binary)?;
    for_this_machine(&content).with_context(|| binary.display().to_string())?;
    let mut system = Layer::default();
    system.directory("/tmp", 0o1777);
    system.directory("/home/nonroot", 0o755);
    let passwd = format!(
        "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/home/nonroot:/sbin/nologin\n"
    );
    system.file("/etc/passwd", 0o644, passwd);
    let group = format!("root:x:0:\nnonroot:x:{USER}:\n");
    system.file("/etc/group", 0o644, group);
    system.file("/etc/nsswitch.conf", 0o644, "hosts: files dns\n");
    system.file(CA_ROOTS, 0o644, ca_roots()?);
    for object in shared_objects(binary)? {
        let path = object
            .to_str()
            .context("a shared object's path is no text")?;
        system.file(path, 0o755, read(&object)?);
    }
    let mut program = Layer::default();
    program.file("/usr/bin/agent-cli", 0o755, content);
    let describe = [
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty",
    ];
    let commit = git(&describe);
    let labels = [
        ("title", "Prefect Kubernetes agent".to_owned()),
        (
            "description",
            "Deploys the flow runs of Prefect 1 as Kubernetes Jobs".to_owned(),
        ),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("revision", commit.unwrap_or_else(|| "unknown".to_owned())),
    ];
    let settings = Settings {
        user: format!("{USER}:{USER}"),
        entrypoint: vec!["/usr/bin/agent-cli".to_owned()],
        command: vec!["start".to_owned()],
        env: vec![
            "PATH=/usr/bin".to_owned(),
            "HOME=/home/nonroot".to_owned(),
            format!("SSL_CERT_FILE={CA_ROOTS}"),
        ],
        labels: labels
            .into_iter()
            .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value))
            .collect(),
        created: created()?,
    };
    Image::new(&settings, &[system, program])
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn ca_roots() -> Result<Vec<u8>> {
    let places = [CA_ROOTS].into_iter().chain(OTHER_CA_ROOTS);
    for place in places {
        if Path::new(place).exists() {
            return read(Path::new(place));
        }
    }
    bail!("there are no CA roots at {CA_ROOTS}; install the package ca-certificates")
}

/// Whether a program is for Linux on this machine's architecture, which the image says it is for.
fn for_this_machine(program: &[u8]) -> Result<()> {
    // The fields of an ELF header: the magic number, and e_machine, little-endian.
    let machine = match program {
        [0x7f, b'E', b'L', b'F', rest @ ..] => rest.get(14..16),
        _ => None,
    };
    let of = match machine {
        Some([0x3e, 0]) => "x86_64",
        Some([0xb7, 0]) => "aarch64",
        Some(_) => "another architecture",
        None => bail!("this is no program for Linux"),
    };
    let here = std::env::consts::ARCH;
    ensure!(
        of == here,
        "this is a program for {of}; make its image on such a machine, not on {here}"
    );
    Ok(())
}

/// The shared objects that a program needs, by the paths at which its loader finds them; none for
/// a static one.
pub(crate) fn shared_objects(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run ldd, which is part of glibc")?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&listed.stderr).into_owned();
    if complaint.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    ensure!(
        listed.status.success(),
        "ldd {}: {}",
        program.display(),
        complaint.trim()
    );
    objects(&text)
}

/// The paths in what `ldd` prints.
fn objects(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let found = line.split_once(" => ").map_or(line, |(_, found)| found);
        ensure!(found != "not found", "a shared object is missing: {line}");
        let path = found.split(' ').next().unwrap_or_default();
        // What has no path is in the kernel.
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// What git says, if this is a clone and git is there.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// `SOURCE_DATE_EPOCH`, or else the time of the commit: the same sources make the same image.
fn created() -> Result<Timestamp> {
    const VARIABLE: &str = "SOURCE_DATE_EPOCH";
    let given = std::env::var(VARIABLE).ok();
    let Some(seconds) = given.or_else(|| git(&["log", "-1", "--format=%ct"])) else {
        return Ok(Timestamp::UNIX_EPOCH);
    };
    let seconds = seconds
        .parse()
        .with_context(|| format!("{VARIABLE} is no number of seconds: {seconds}"))?;
    Timestamp::from_second(seconds).with_context(|| format!("{VARIABLE} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_shared_objects_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = objects(text).expect("all there");
        let wanted = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, wanted.map(PathBuf::from));
    }

    #[test]
    fn only_programs_that_run_here_become_images() {
        let own = std::env::current_exe().expect("this test");
        let mut own = read(&own).expect("its content");
        own.truncate(64);
        for_this_machine(&own).expect("it runs");
        let other = if own[18] == 0x3e { 0xb7 } else { 0x3e };
        own[18] = other;
        let error = for_this_machine(&own).expect_err("of another machine");
        assert!(error.to_string().contains("make its image on"), "{error}");
        let error = for_this_machine(b"#!/bin/sh").expect_err("a script");
        assert!(error.to_string().contains("no program"), "{error}");
    }

    #[test]
    fn a_missing_shared_object_is_named() {
        let error = objects("\tlibx.so.1 => not found\n").expect_err("it is missing");
        assert!(error.to_string().contains("libx.so.1"), "{error}");
    }
}
