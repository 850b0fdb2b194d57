//! A layer of an image: a tar archive whose bytes follow from its content alone.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

/// Files and folders, all of root's, all from the beginning of time, in the order of their paths.
#[derive(Default)]
pub(crate) struct Layer {
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

impl Layer {
    /// Adds a folder.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.add(path, Entry::Directory { mode });
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        let content = content.into();
        self.add(path, Entry::File { mode, content });
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let target = target.to_owned();
        self.add(path, Entry::Link { target });
    }

    /// The folders above a path come into being with it.
    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        let above = path.match_indices('/').map(|(end, _)| &path[..end]);
        for folder in above {
            let folder = self.entries.entry(folder.to_owned());
            folder.or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The layer as a tar archive.
    pub(crate) fn tar(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            let written = match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    archive.append_data(&mut header, format!("{path}/"), &[][..])
                }
                Entry::File { mode, content } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())
                }
                Entry::Link { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target)
                }
            };
            written.with_context(|| format!("cannot put {path} into a layer"))?;
        }
        archive.into_inner().context("cannot finish a layer")
    }
}

/// The bytes, compressed; the same for the same bytes.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut compressed = GzEncoder::new(Vec::new(), Compression::default());
    compressed.write_all(bytes)?;
    compressed.finish().context("cannot compress a layer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(layer: &Layer) -> Vec<String> {
        let tar = layer.tar().expect("a layer");
        let mut archive = tar::Archive::new(tar.as_slice());
        let entries = archive.entries().expect("entries");
        let path =
            |entry: tar::Entry<'_, &[u8]>| entry.path().expect("a path").display().to_string();
        entries
            .map(|entry| path(entry.expect("an entry")))
            .collect()
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut layer = Layer::default();
        layer.file("/usr/bin/tool", 0o755, "x");
        layer.link("/bin", "usr/bin");
        assert_eq!(paths(&layer), ["bin", "usr/", "usr/bin/", "usr/bin/tool"]);
    }

    #[test]
    fn a_folder_that_was_asked_for_keeps_its_mode() {
        let mut layer = Layer::default();
        layer.directory("/tmp", 0o1777);
        layer.file("/tmp/file", 0o644, "x");
        let tar = layer.tar().expect("a layer");
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut entries = archive.entries().expect("entries");
        let first = entries.next().expect("one").expect("an entry");
        assert_eq!(first.header().mode().expect("a mode"), 0o1777);
    }

    #[test]
    fn the_order_of_adding_changes_nothing() {
        let (mut one, mut two) = (Layer::default(), Layer::default());
        one.file("/a", 0o644, "a");
        one.file("/b", 0o644, "b");
        two.file("/b", 0o644, "b");
        two.file("/a", 0o644, "a");
        let bytes = |layer: &Layer| gzip(&layer.tar().expect("a layer")).expect("compressed");
        assert_eq!(bytes(&one), bytes(&two));
    }
}
