//! What clients do to objects: create, replace, patch, delete.

use std::sync::Arc;

use serde_json::{Value, json};

use super::admission::Admission;
use super::cluster::Cluster;
use super::decode::decode;
use super::defaults;
use super::kinds::{JOBS, KINDS, KindId, NAMESPACES, PODS};
use super::object::{Key, Stored, child, has_finalizers, is_deleting, text};
use super::patch;
use super::refused::{Cause, Outcome, Refused};
use super::validate::{check_quantities, validate, validate_update};

/// How a change is meant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mode {
    pub(crate) dry_run: bool,
    /// Refuse unknown members.
    pub(crate) strict: bool,
    /// Only the status is changed.
    pub(crate) status_only: bool,
}

/// What becomes of what an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What came of a deletion.
pub(crate) enum Deletion {
    /// The object is gone; this was its last version.
    Done(Stored),
    /// The object stays until its finalizers are done.
    Pending(Stored),
}

impl Cluster {
    pub(crate) fn create(
        &self,
        kind_id: KindId,
        namespace: Option<&str>,
        body: Value,
        mode: Mode,
    ) -> Outcome<Stored> {
        let kind = &KINDS[kind_id];
        let mut value = decode(kind, body, mode.strict)?;
        check_quantities(kind, &value)?;
        own_namespace(&mut value, namespace)?;
        self.namespace_takes(kind_id, namespace, text(&value, "/metadata/name"))?;
        let now = self.now_text();
        let uid = {
            let mut store = self.store();
            let generated = text(&value, "/metadata/generateName").to_owned();
            if text(&value, "/metadata/name").is_empty() && !generated.is_empty() {
                let name = format!("{generated}{}", store.name_suffix());
                child(&mut value, "metadata").insert("name".into(), json!(name));
            }
            store.new_uid()
        };
        value["apiVersion"] = json!(kind.api_version());
        value["kind"] = json!(kind.kind);
        let metadata = child(&mut value, "metadata");
        metadata.insert("uid".into(), json!(uid));
        metadata.insert("creationTimestamp".into(), json!(now));
        metadata.remove("deletionTimestamp");
        match kind_id {
            JOBS => defaults::job(&mut value),
            PODS => defaults::pod(&mut value),
            NAMESPACES => value["status"] = json!({"phase": "Active"}),
            _ => {}
        }
        validate(kind, &value)?;
        if kind_id == JOBS {
            defaults::job_labels(&mut value);
        }
        let key = Key::of(&value);
        if kind_id == JOBS {
            let webhook = self.admission().webhook.clone();
            if let Some(webhook) = webhook {
                Admission::ask(&webhook, &value, mode.dry_run)?;
            }
        }
        let mut store = self.store();
        if kind_id == JOBS {
            let of_namespace =
                |job: &&Stored| text(&job.value, "/metadata/namespace") == key.namespace;
            let mut admission = self.admission();
            let used = match admission.quota {
                Some(_) => store.all(JOBS).filter(of_namespace).count(),
                None => 0,
            };
            admission.charge(&key.name, used, mode.dry_run)?;
        }
        if store.get(kind_id, &key).is_some() {
            return Err(Refused::already_exists(kind, &key.name));
        }
        // Only the storage looks at it, which a dry run does not reach.
        let version = text(&value, "/metadata/resourceVersion");
        if !mode.dry_run && version.parse::<u64>().is_ok_and(|version| version != 0) {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Refused::unexpected(message));
        }
        if mode.dry_run {
            let version = store.version();
            return Ok(super::object::Object::new(value, version));
        }
        let stored = store.put(kind_id, value);
        drop(store);
        if kind_id == JOBS {
            self.job_created(&stored);
        }
        self.changes.mark();
        Ok(stored)
    }

    /// Refuses an object whose namespace is not there, or is about to go.
    fn namespace_takes(&self, kind: KindId, namespace: Option<&str>, name: &str) -> Outcome<()> {
        let Some(namespace) = namespace else {
            return Ok(());
        };
        match self.store().get(NAMESPACES, &Key::new("", namespace)) {
            None => Err(Refused::not_found(&KINDS[NAMESPACES], namespace)),
            Some(found) if text(&found.value, "/status/phase") == "Terminating" => {
                Err(Refused::terminating(&KINDS[kind], name, namespace))
            }
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn replace(
        &self,
        kind_id: KindId,
        key: &Key,
        body: Value,
        mode: Mode,
    ) -> Outcome<Stored> {
        let kind = &KINDS[kind_id];
        let mut value = decode(kind, body, mode.strict)?;
        own_namespace(
            &mut value,
            Some(&key.namespace)
                .filter(|_| kind.namespaced)
                .map(|s| s.as_str()),
        )?;
        if text(&value, "/metadata/name") != key.name {
            return Err(Refused::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                text(&value, "/metadata/name"),
                key.name
            )));
        }
        self.modify(kind_id, key, mode, |_| Ok(value))
    }

    /// Applies a patch, whose meaning its content type tells.
    pub(crate) fn patch(
        &self,
        kind_id: KindId,
        key: &Key,
        content_type: &str,
        body: &Value,
        mode: Mode,
    ) -> Outcome<Stored> {
        let kind = &KINDS[kind_id];
        if content_type == "application/apply-patch+yaml"
            && self.store().get(kind_id, key).is_none()
        {
            let namespace = kind.namespaced.then_some(key.namespace.as_str());
            return self.create(kind_id, namespace, body.clone(), mode);
        }
        self.modify(kind_id, key, mode, |old| {
            let mut value = old.clone();
            match content_type {
                "application/json-patch+json" => {
                    // The real server keeps the reason to itself.
                    patch::json_patch(&mut value, body).map_err(|_| Refused {
                        code: 422,
                        reason: "Invalid",
                        message: "the server rejected our request due to an error in our request"
                            .to_owned(),
                        details: Some(json!({})),
                        after: 0,
                    })?;
                }
                _ => patch::merge(&mut value, body),
            }
            let asked = match content_type {
                "application/json-patch+json" => String::new(),
                _ => text(body, "/metadata/resourceVersion").to_owned(),
            };
            child(&mut value, "metadata").insert("resourceVersion".into(), json!(asked));
            decode(kind, value, mode.strict)
        })
    }

    /// Replaces an object by what `change` makes of it, with all checks.
    fn modify(
        &self,
        kind_id: KindId,
        key: &Key,
        mode: Mode,
        change: impl FnOnce(&Value) -> Outcome<Value>,
    ) -> Outcome<Stored> {
        let kind = &KINDS[kind_id];
        let mut store = self.store();
        let old = match store.get(kind_id, key) {
            Some(old) => old.clone(),
            None => return Err(Refused::not_found(kind, &key.name)),
        };
        let mut new = change(&old.value)?;
        let asked = text(&new, "/metadata/resourceVersion");
        if !asked.is_empty() && asked != old.version.to_string() {
            return Err(Refused::modified(kind, &key.name));
        }
        let (given, uid) = (
            text(&new, "/metadata/uid"),
            text(&old.value, "/metadata/uid"),
        );
        if !given.is_empty() && given != uid {
            let why = format!(
                "Precondition failed: UID in precondition: {given}, UID in object meta: {uid}"
            );
            return Err(Refused::conflict(kind, &key.name, &why));
        }
        if mode.status_only {
            let status = new["status"].take();
            new = old.value.clone();
            new["status"] = status;
        } else if kind.has_status {
            new["status"] = old.value["status"].clone();
        }
        keep_metadata(&old.value, &mut new);
        if !mode.status_only {
            validate(kind, &new)?;
            validate_update(kind, &old.value, &new)?;
        }
        if new["spec"] != old.value["spec"]
            && let Some(generation) = old.value["metadata"]["generation"].as_i64()
        {
            new["metadata"]["generation"] = json!(generation + 1);
        }
        if new == old.value {
            return Ok(old);
        }
        if mode.dry_run {
            return Ok(super::object::Object::new(new, old.version));
        }
        let stored = store.put(kind_id, new);
        drop(store);
        self.changes.mark();
        if is_deleting(&stored.value) && !has_finalizers(&stored.value) {
            self.remove(kind_id, key, false);
        }
        Ok(stored)
    }

    /// Deletes an object as `options`, a `DeleteOptions` object, say.
    pub(crate) fn delete(
        self: &Arc<Self>,
        kind_id: KindId,
        key: &Key,
        options: &Value,
        dry_run: bool,
    ) -> Outcome<Deletion> {
        let kind = &KINDS[kind_id];
        let propagation = propagation(kind_id, options)?;
        let mut store = self.store();
        let old = match store.get(kind_id, key) {
            Some(old) => old.clone(),
            None => return Err(Refused::not_found(kind, &key.name)),
        };
        check_preconditions(kind_id, key, &old, options)?;
        if dry_run {
            return Ok(Deletion::Done(old));
        }
        let foreground = propagation == Propagation::Foreground && kind_id == JOBS;
        if !foreground && !has_finalizers(&old.value) {
            drop(store);
            let removed = self.remove(kind_id, key, propagation == Propagation::Orphan);
            return Ok(Deletion::Done(removed.unwrap_or(old)));
        }
        if is_deleting(&old.value) {
            return Ok(Deletion::Pending(old));
        }
        let mut value = old.value.clone();
        let metadata = child(&mut value, "metadata");
        metadata.insert("deletionTimestamp".into(), json!(self.now_text()));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
        if foreground {
            let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(finalizers) = finalizers.as_array_mut() {
                finalizers.push(json!("foregroundDeletion"));
            }
        }
        let pending = store.put(kind_id, value);
        drop(store);
        self.changes.mark();
        if foreground {
            tokio::spawn(self.clone().finish_foreground(kind_id, key.clone()));
        }
        Ok(Deletion::Pending(pending))
    }

    /// Deletes dependents first, then takes the finalizer off their owner.
    async fn finish_foreground(self: Arc<Self>, kind: KindId, key: Key) {
        tokio::time::sleep(self.options.foreground_delay).await;
        let dependents = {
            let store = self.store();
            let Some(owner) = store.get(kind, &key) else {
                return;
            };
            store.owned_by(text(&owner.value, "/metadata/uid"))
        };
        for (kind, key) in dependents {
            self.remove(kind, &key, false);
        }
        let left = self.update(kind, &key, |owner| {
            if let Some(finalizers) = owner["metadata"]["finalizers"].as_array_mut() {
                finalizers.retain(|one| one != "foregroundDeletion");
            }
        });
        if left.is_some_and(|owner| !has_finalizers(&owner.value)) {
            self.remove(kind, &key, false);
        }
    }
}

fn own_namespace(value: &mut Value, namespace: Option<&str>) -> Outcome<()> {
    let Some(namespace) = namespace else {
        child(value, "metadata").remove("namespace");
        return Ok(());
    };
    let given = text(value, "/metadata/namespace");
    if !given.is_empty() && given != namespace {
        return Err(Refused::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    child(value, "metadata").insert("namespace".into(), json!(namespace));
    Ok(())
}

/// Puts back what a client cannot change.
fn keep_metadata(old: &Value, new: &mut Value) {
    let fixed = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "generation",
        "resourceVersion",
    ];
    let metadata = child(new, "metadata");
    for name in fixed {
        match &old["metadata"][name] {
            Value::Null => {
                metadata.remove(name);
            }
            kept => {
                metadata.insert(name.into(), kept.clone());
            }
        }
    }
    new["apiVersion"] = old["apiVersion"].clone();
    new["kind"] = old["kind"].clone();
}

/// What an object of this kind leaves behind: Jobs leave their pods unless told otherwise.
fn propagation(kind: KindId, options: &Value) -> Outcome<Propagation> {
    if options["orphanDependents"] == true {
        return Ok(Propagation::Orphan);
    }
    match options["propagationPolicy"].as_str() {
        None if kind == JOBS && options["orphanDependents"].is_null() => Ok(Propagation::Orphan),
        None | Some("Background") => Ok(Propagation::Background),
        Some("Foreground") => Ok(Propagation::Foreground),
        Some("Orphan") => Ok(Propagation::Orphan),
        Some(other) => {
            let cause = Cause::unsupported(
                "propagationPolicy",
                other,
                &["Foreground", "Background", "Orphan", "nil"],
            );
            Err(Refused::invalid(
                "DeleteOptions",
                "meta.k8s.io",
                "",
                &[cause],
            ))
        }
    }
}

fn check_preconditions(kind: KindId, key: &Key, old: &Stored, options: &Value) -> Outcome<()> {
    let uid = text(&old.value, "/metadata/uid");
    let version = old.version.to_string();
    for (name, label, have, meaning) in [
        ("uid", "UID", uid, "deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", &version, "modified"),
    ] {
        if let Some(wanted) = options["preconditions"][name].as_str()
            && wanted != have
        {
            let why = format!(
                "the {label} in the precondition ({wanted}) does not match the {label} in record \
                 ({have}). The object might have been {meaning}"
            );
            return Err(Refused::precondition(&KINDS[kind], &key.name, &why));
        }
    }
    Ok(())
}
