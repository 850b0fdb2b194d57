//! The images of the tests, made of a static busybox: the one that holds a pod together, and one
//! in which a shell script stands in for `prefect`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::image::{Image, Layer, Settings};

/// The image under every pod.
pub(super) const PAUSE: &str = "localhost/pause:e2e";
/// The image of flows.
pub(super) const FLOW: &str = "localhost/flow:e2e";
/// The image that flows get when they name none; where the tests may, the image of flows has
/// this name too.
pub(super) const DEFAULT: &str = "docker.io/prefecthq/prefect:1.4.1";

/// What `prefect execute flow-run` is in the image of flows.
const PREFECT: &str = include_str!("flow.sh");
/// Programs of busybox that flows use.
const PROGRAMS: [&str; 14] = [
    "base64", "cat", "dd", "echo", "env", "head", "kill", "sed", "sh", "sleep", "tail", "tr",
    "true", "wget",
];

/// Where a static busybox may be.
const BUSYBOX: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"];

/// Both images.
pub(super) struct Images {
    pub(super) pause: Image,
    pub(super) flow: Image,
}

impl Images {
    /// Assembles them.
    pub(super) fn assemble() -> Result<Self> {
        let busybox = busybox().context("there is no busybox; install busybox-static")?;
        ensure!(
            crate::image::shared_objects(&busybox)?.is_empty(),
            "{} needs shared objects, which are not in the images; install busybox-static",
            busybox.display()
        );
        let program = std::fs::read(&busybox)
            .with_context(|| format!("cannot read {}", busybox.display()))?;
        let pause = Settings {
            entrypoint: ["/bin/busybox", "sleep", "2147483647"]
                .map(Into::into)
                .into(),
            user: "65535:65535".to_owned(),
            ..Settings::default()
        };
        let flow = Settings {
            env: vec!["PATH=/usr/bin:/bin".to_owned()],
            ..Settings::default()
        };
        Ok(Self {
            pause: Image::new(&pause, &[base(&program)])?,
            flow: Image::new(&flow, &[base(&program), script()])?,
        })
    }
}

fn busybox() -> Option<PathBuf> {
    let places = BUSYBOX.iter().map(Path::new);
    places
        .into_iter()
        .find(|path| path.exists())
        .map(Into::into)
}

fn base(busybox: &[u8]) -> Layer {
    let mut layer = Layer::default();
    layer.directory("/tmp", 0o1777);
    layer.directory("/etc", 0o755);
    layer.file("/bin/busybox", 0o755, busybox);
    for program in PROGRAMS {
        layer.link(&format!("/bin/{program}"), "busybox");
    }
    layer
}

fn script() -> Layer {
    let mut layer = Layer::default();
    layer.file("/usr/bin/prefect", 0o755, PREFECT);
    layer
}
