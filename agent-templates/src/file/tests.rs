//! Files, and what flows may not read of them.

use std::fs;

use tempfile::TempDir;

use super::*;

fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        fs::write(path, content).expect("written");
    }
    dir
}

/// Files below `base`, those of flows below `base/flows`; each load asks the file again.
fn confined(base: &Path) -> FileTemplates {
    FileTemplates::with_settings(&TemplateSettings {
        base: base.to_owned(),
        flow_dir: Some(base.join("flows")),
        fresh_for: Duration::ZERO,
        ..TemplateSettings::default()
    })
}

/// Makes a file look as if it had been left alone for an hour.
fn age(path: &Path) {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let file = File::options().append(true).open(path).expect("opened");
    file.set_modified(hour_ago).expect("aged");
}

#[tokio::test]
async fn reads_files_and_names_those_it_cannot_read() {
    let dir = directory(&[("job.yaml", b"kind: Job")]);
    let store = FileTemplates::new(dir.path());
    let absolute = dir.path().join("job.yaml");
    let absolute = absolute.display();
    for location in [
        "job.yaml",
        "agent:job.yaml",
        "./none/../job.yaml?x",
        &format!("{absolute}"),
        &format!("file://{absolute}"),
        &format!("local://{absolute}"),
        &format!("agent://host{absolute}"),
    ] {
        let found = store.load(location, TemplateOrigin::Agent).await;
        if location.contains("none") {
            assert!(found.is_err(), "{location}");
            continue;
        }
        let found = found.unwrap_or_else(|error| panic!("{location}: {error}"));
        assert_eq!(found.bytes, b"kind: Job");
        assert_eq!(found.location, location);
    }
    for (missing, why) in [
        ("none.yaml", "No such file"),
        ("job.yaml/x", "Not a directory"),
        (".", "is not a file"),
        ("agent://job.yaml", "names no file"),
        ("", "names no file"),
        ("nul\0byte", "nul\\u{0}byte"),
    ] {
        let error = store
            .load(missing, TemplateOrigin::Flow)
            .await
            .expect_err("refused");
        assert!(error.to_string().contains(why), "{error}");
        assert!(!error.is_transient(), "{error}");
    }
    let error = store.load("ftp://host/x", TemplateOrigin::Agent).await;
    let error = error.expect_err("refused").to_string();
    assert_eq!(error, "Unsupported file scheme ftp://host/x");
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused_and_one_that_just_fits_is_not() {
    let dir = directory(&[
        ("large", &vec![b' '; LARGEST + 1]),
        ("fits", &vec![b' '; LARGEST]),
    ]);
    let store = FileTemplates::new(dir.path());
    let error = store.load("large", TemplateOrigin::Agent).await;
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("large has 1048577 bytes"), "{error}");
    assert!(store.load("fits", TemplateOrigin::Agent).await.is_ok());
}

#[tokio::test]
async fn a_change_is_seen_and_an_unchanged_file_is_the_same_template() {
    let dir = directory(&[("flows/job.yaml", b"kind: Job")]);
    let path = dir.path().join("flows/job.yaml");
    age(&path);
    let store = confined(dir.path());
    let load = || store.load("job.yaml", TemplateOrigin::Flow);
    let first = load().await.expect("there");
    assert!(Arc::ptr_eq(&first, &load().await.expect("there")));
    for text in ["kind: Pod", "kind: Map"] {
        fs::write(&path, text).expect("written");
        assert_eq!(load().await.expect("there").bytes, text.as_bytes());
    }
    fs::remove_file(&path).expect("removed");
    let error = load().await.expect_err("deleted");
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_file_that_was_left_alone_is_not_read_again() {
    let dir = directory(&[("job.yaml", b"kind: Job")]);
    let path = dir.path().join("job.yaml");
    let Ok(Fetched::Found { tag, .. }) = read(&path, None, None) else {
        panic!("there");
    };
    assert_eq!(tag, None, "a young file can change without a trace");
    age(&path);
    let Ok(Fetched::Found { tag, .. }) = read(&path, None, None) else {
        panic!("there");
    };
    let again = read(&path, None, tag.as_deref());
    assert!(matches!(again, Ok(Fetched::NotModified)));
}

#[tokio::test]
async fn flows_read_only_below_their_directory() {
    let dir = directory(&[
        ("secret", b"password"),
        ("flows/job.yaml", b"kind: Job"),
        ("flows/deep/job.yaml", b"kind: Job"),
        ("flowsecret/job.yaml", b"password"),
    ]);
    let store = confined(dir.path());
    let absolute = dir.path().display().to_string();
    for inside in [
        "job.yaml",
        "agent:deep/../job.yaml",
        "deep/job.yaml",
        &format!("file://{absolute}/flows/deep/job.yaml"),
    ] {
        let found = store.load(inside, TemplateOrigin::Flow).await;
        assert_eq!(found.expect(inside).bytes, b"kind: Job");
    }
    for outside in [
        "../secret",
        "agent:../secret",
        "deep/../../secret",
        "../flowsecret/job.yaml",
        "/etc/hostname",
        "agent:///etc/hostname",
        "/etc/no-such-file",
        &format!("{absolute}/secret"),
        &format!("local://{absolute}/flows/../secret"),
    ] {
        let error = store
            .load(outside, TemplateOrigin::Flow)
            .await
            .expect_err(outside);
        assert!(error.to_string().contains("--flow-template-dir"), "{error}");
    }
    let own = store.load("secret", TemplateOrigin::Agent).await;
    assert!(own.is_ok(), "the agent's own template is not confined");
}

#[cfg(unix)]
#[tokio::test]
async fn links_that_leave_the_directory_are_refused_and_those_within_it_are_not() {
    use std::os::unix::fs::symlink;
    let dir = directory(&[
        ("secret", b"password"),
        ("flows/..data/job.yaml", b"kind: Job"),
    ]);
    let flows = dir.path().join("flows");
    let link = |to: &Path, name: &str| symlink(to, flows.join(name)).expect("linked");
    link(Path::new("..data/job.yaml"), "job.yaml");
    link(&flows.join("..data"), "absolute");
    link(Path::new("../secret"), "escape");
    link(dir.path(), "up");
    link(Path::new("loop"), "loop");
    let store = confined(dir.path());
    for inside in ["job.yaml", "absolute/job.yaml"] {
        let found = store.load(inside, TemplateOrigin::Flow).await;
        assert_eq!(found.expect(inside).bytes, b"kind: Job");
    }
    for outside in ["escape", "up/secret"] {
        let error = store.load(outside, TemplateOrigin::Flow).await;
        let error = error.expect_err(outside).to_string();
        assert!(error.contains("symbolic links"), "{error}");
    }
    let error = store.load("loop", TemplateOrigin::Flow).await;
    assert!(!error.expect_err("a loop").is_transient());
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_that_is_turned_outside_is_refused_though_the_file_was_read_before() {
    use std::os::unix::fs::symlink;
    let dir = directory(&[("secret", b"password"), ("flows/real", b"kind: Job")]);
    let link = dir.path().join("flows/job.yaml");
    symlink("real", &link).expect("linked");
    let store = confined(dir.path());
    let load = || store.load("job.yaml", TemplateOrigin::Flow);
    assert!(load().await.is_ok());
    fs::remove_file(&link).expect("removed");
    symlink("../secret", &link).expect("linked");
    assert!(load().await.is_err());
}

#[tokio::test]
async fn a_missing_directory_for_flows_is_named() {
    let dir = directory(&[("job.yaml", b"kind: Job")]);
    let store = confined(dir.path());
    let error = store.load("job.yaml", TemplateOrigin::Flow).await;
    let error = error.expect_err("no directory").to_string();
    assert!(error.contains("No such file"), "{error}");
}
