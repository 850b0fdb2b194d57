//! An image as the archive that `ctr images import`, `kind load image-archive`, `podman load` and
//! `docker load` take: an OCI image layout in a tar file, with Docker's `manifest.json` beside it.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::{Layer, gzip};

/// What the containers of an image start with, as the OCI image specification names it.
#[derive(Default)]
pub(crate) struct Settings {
    /// The user and the group, as numbers.
    pub(crate) user: String,
    /// The program and its first arguments.
    pub(crate) entrypoint: Vec<String>,
    /// The arguments unless others are given.
    pub(crate) command: Vec<String>,
    /// Variables, as `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// When the image came into being; part of its bytes.
    pub(crate) created: Timestamp,
}

/// An image of this machine's architecture.
pub(crate) struct Image {
    blobs: BTreeMap<String, Vec<u8>>,
    config: String,
    layers: Vec<String>,
    /// The bytes of each layer, compressed and plain.
    sizes: Vec<(u64, u64)>,
    manifest: Value,
}

impl Image {
    /// Puts an image together.
    pub(crate) fn new(settings: &Settings, layers: &[Layer]) -> Result<Self> {
        let mut blobs = BTreeMap::new();
        let mut keep = |bytes: Vec<u8>, media: &str| {
            let digest = digest(&bytes);
            let size = bytes.len();
            blobs.insert(digest.clone(), bytes);
            let descriptor = json!({
                "mediaType": media, "digest": format!("sha256:{digest}"), "size": size,
            });
            (digest, descriptor)
        };
        let mut diff_ids = Vec::new();
        let (mut kept, mut sizes) = (Vec::new(), Vec::new());
        for layer in layers {
            let tar = layer.tar()?;
            diff_ids.push(format!("sha256:{}", digest(&tar)));
            let compressed = gzip(&tar)?;
            sizes.push((compressed.len() as u64, tar.len() as u64));
            kept.push(keep(
                compressed,
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ));
        }
        let config = config(settings, &diff_ids).to_string().into_bytes();
        let (config, config_descriptor) = keep(config, "application/vnd.oci.image.config.v1+json");
        let (layers, descriptors): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_descriptor,
            "layers": descriptors,
        });
        let (_, manifest) = keep(
            manifest.to_string().into_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        );
        Ok(Self {
            blobs,
            config,
            layers,
            sizes,
            manifest,
        })
    }

    /// The digest of its manifest, by which registries know it.
    pub(crate) fn digest(&self) -> &str {
        self.manifest["digest"].as_str().unwrap_or_default()
    }

    /// The bytes of each layer, compressed and plain.
    pub(crate) fn layer_sizes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.sizes.iter().copied()
    }

    /// Writes the archive; an image can have several names.
    pub(crate) fn write(&self, names: &[&str], out: impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(out);
        let mut file = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            let added = archive.append_data(&mut header, path, bytes);
            added.with_context(|| format!("cannot write {path}"))
        };
        let manifests: Vec<Value> = names
            .iter()
            .map(|name| {
                let mut manifest = self.manifest.clone();
                let name = reference(name);
                manifest["annotations"] = json!({
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name,
                });
                manifest
            })
            .collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        });
        let path = |digest: &String| format!("blobs/sha256/{digest}");
        let docker = json!([{
            "Config": path(&self.config),
            "RepoTags": names,
            "Layers": self.layers.iter().map(path).collect::<Vec<_>>(),
        }]);
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file("index.json", index.to_string().as_bytes())?;
        file("manifest.json", docker.to_string().as_bytes())?;
        for (digest, bytes) in &self.blobs {
            file(&path(digest), bytes)?;
        }
        archive.into_inner()?.flush().context("cannot write")
    }
}

fn config(settings: &Settings, diff_ids: &[String]) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "created": settings.created.to_string(),
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": settings.user,
            "Env": settings.env,
            "Entrypoint": settings.entrypoint,
            "Cmd": settings.command,
            "WorkingDir": "/",
            "Labels": settings.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name with the registry that a container runtime adds to it.
fn reference(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn archive(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let mut layer = Layer::default();
        layer.file("/bin/tool", 0o755, "#!");
        let settings = Settings {
            user: "65532:65532".into(),
            entrypoint: vec!["/bin/tool".into()],
            ..Settings::default()
        };
        let image = Image::new(&settings, &[layer]).expect("an image");
        let mut bytes = Vec::new();
        image.write(names, &mut bytes).expect("written");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice())
            .entries()
            .expect("entries")
        {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            let path = entry.path().expect("a path").display().to_string();
            entry.read_to_end(&mut content).expect("content");
            files.insert(path, content);
        }
        files
    }

    fn parsed(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn every_blob_is_found_by_its_digest_and_has_the_size_that_is_said() {
        let files = archive(&["tool:1"]);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let path = format!("blobs/{}", digest.replace(':', "/"));
            let bytes = &files[&path];
            assert_eq!(descriptor["size"], bytes.len());
            assert_eq!(digest, format!("sha256:{}", super::digest(bytes)));
            bytes.clone()
        };
        let index = parsed(&files["index.json"]);
        let manifest = parsed(&blob(&index["manifests"][0]));
        let config = parsed(&blob(&manifest["config"]));
        let layer = blob(&manifest["layers"][0]);
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(layer.as_slice())
            .read_to_end(&mut tar)
            .expect("gzip");
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", super::digest(&tar))
        );
        assert_eq!(config["config"]["User"], "65532:65532");
        let docker = parsed(&files["manifest.json"]);
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().expect("a path")));
    }

    #[test]
    fn the_same_content_has_the_same_bytes() {
        assert_eq!(archive(&["tool:1"]), archive(&["tool:1"]));
    }

    #[test]
    fn runtimes_find_an_image_under_the_name_that_they_complete() {
        assert_eq!(reference("tool:1"), "docker.io/library/tool:1");
        assert_eq!(reference("team/tool:1"), "docker.io/team/tool:1");
        assert_eq!(reference("localhost/tool:1"), "localhost/tool:1");
        assert_eq!(
            reference("registry.example/tool:1"),
            "registry.example/tool:1"
        );
        let index = parsed(&archive(&["a:1", "b:1"])["index.json"]);
        let names = index["manifests"].as_array().expect("a list").iter();
        let names: Vec<&Value> = names
            .map(|manifest| &manifest["annotations"]["io.containerd.image.name"])
            .collect();
        assert_eq!(names, ["docker.io/library/a:1", "docker.io/library/b:1"]);
    }
}
