//! The objects, their history for watches, and indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::kinds::{KINDS, KindId};
use super::object::{self, Key, Object, Stored};
use super::selector::Selector;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    Added,
    Modified,
    Deleted,
}

/// One entry of a kind's history.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) happened: Happened,
    pub(crate) object: Stored,
    pub(crate) before: Option<Stored>,
}

/// What became of an object that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It exists, at this version.
    At(u64),
    /// It is no more.
    Gone,
}

/// A page of a list.
pub(crate) struct Page {
    pub(crate) objects: Vec<Stored>,
    /// Where the next page begins, and how many objects it and later ones hold if that is known.
    pub(crate) next: Option<(Key, Option<usize>)>,
}

#[derive(Debug)]
struct Table {
    objects: BTreeMap<Key, Stored>,
    index: HashMap<String, HashMap<String, BTreeSet<Key>>>,
    history: VecDeque<Change>,
    /// Changes of this kind up to this version are forgotten.
    forgotten: u64,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    /// Clients may not go back beyond this version.
    compacted: u64,
    tables: Vec<Table>,
    owned: HashMap<String, BTreeSet<(KindId, Key)>>,
    lives: HashMap<String, watch::Sender<Life>>,
    history_limit: usize,
    ids: fastrand::Rng,
}

impl Store {
    pub(crate) fn new(seed: u64, history_limit: usize) -> Self {
        let table = || Table {
            objects: BTreeMap::new(),
            index: HashMap::new(),
            history: VecDeque::new(),
            forgotten: 0,
            version: watch::Sender::new(0),
        };
        Self {
            version: 1,
            compacted: 0,
            tables: KINDS.iter().map(|_| table()).collect(),
            owned: HashMap::new(),
            lives: HashMap::new(),
            history_limit,
            ids: fastrand::Rng::with_seed(seed),
        }
    }

    /// The resource version of the latest change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn new_uid(&mut self) -> String {
        let bytes = self.ids.u128(..).to_le_bytes();
        uuid::Builder::from_random_bytes(bytes)
            .into_uuid()
            .to_string()
    }

    /// Five letters and digits as the real server appends to generated names.
    pub(crate) fn name_suffix(&mut self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5)
            .map(|_| char::from(ALPHABET[self.ids.usize(..ALPHABET.len())]))
            .collect()
    }

    pub(crate) fn get(&self, kind: KindId, key: &Key) -> Option<&Stored> {
        self.tables[kind].objects.get(key)
    }

    pub(crate) fn count(&self, kind: KindId) -> usize {
        self.tables[kind].objects.len()
    }

    pub(crate) fn all(&self, kind: KindId) -> impl Iterator<Item = &Stored> {
        self.tables[kind].objects.values()
    }

    /// The oldest version at which a client may begin to watch this kind.
    pub(crate) fn oldest(&self, kind: KindId) -> u64 {
        self.tables[kind].forgotten.max(self.compacted)
    }

    /// Sees the version of every change of this kind.
    pub(crate) fn subscribe(&self, kind: KindId) -> watch::Receiver<u64> {
        self.tables[kind].version.subscribe()
    }

    /// Follows one object, by its uid, until it is gone.
    pub(crate) fn follow(&mut self, uid: &str) -> watch::Receiver<Life> {
        self.lives
            .entry(uid.to_owned())
            .or_insert_with(|| watch::Sender::new(Life::At(0)))
            .subscribe()
    }

    /// Up to `limit` objects after `after`, of one namespace or all.
    pub(crate) fn list(
        &self,
        kind: KindId,
        namespace: Option<&str>,
        selector: &Selector,
        limit: usize,
        after: Option<&Key>,
    ) -> Page {
        let table = &self.tables[kind];
        let candidates = table.candidates(selector, namespace);
        let mut found: Box<dyn Iterator<Item = (&Key, &Stored)>> = match (&candidates, namespace) {
            (Some(keys), _) => {
                let within = keys
                    .iter()
                    .filter(move |key| namespace.is_none_or(|namespace| key.namespace == namespace))
                    .filter(move |key| after.is_none_or(|after| *key > after));
                Box::new(within.filter_map(|key| Some((key, table.objects.get(key)?))))
            }
            (None, Some(namespace)) => {
                let start = match after {
                    Some(after) => Bound::Excluded(after.clone()),
                    None => Bound::Included(Key::new(namespace, "")),
                };
                let range = table.objects.range((start, Bound::Unbounded));
                Box::new(range.take_while(move |(key, _)| key.namespace == namespace))
            }
            (None, None) => {
                let start = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
                Box::new(table.objects.range((start, Bound::Unbounded)))
            }
        };
        if !selector.is_everything() {
            found = Box::new(found.filter(|(_, object)| selector.matches(&object.value)));
        }
        let mut last = None;
        let mut objects = Vec::new();
        for (key, object) in found.by_ref().take(limit) {
            objects.push(object.clone());
            last = Some(key);
        }
        let next = match (found.next(), last) {
            (Some(_), Some(last)) => {
                let left = selector.is_everything().then(|| found.count() + 1);
                Some((last.clone(), left))
            }
            _ => None,
        };
        Page { objects, next }
    }

    /// Adds or replaces an object, which gets the next resource version.
    pub(crate) fn put(&mut self, kind: KindId, mut value: Value) -> Stored {
        self.version += 1;
        let version = self.version;
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = Key::of(&value);
        let object = Object::new(value, version);
        for owner in object::owners(&object.value) {
            let owned = self.owned.entry(owner.to_owned()).or_default();
            owned.insert((kind, key.clone()));
        }
        let uid = object::text(&object.value, "/metadata/uid");
        let before = self.tables[kind].replace(&key, object.clone());
        if let Some(before) = &before {
            for owner in object::owners(&before.value) {
                if !object::owners(&object.value).any(|kept| kept == owner)
                    && let Some(owned) = self.owned.get_mut(owner)
                {
                    owned.remove(&(kind, key.clone()));
                }
            }
            if let Some(life) = self.lives.get(uid) {
                life.send_replace(Life::At(version));
            }
        }
        let happened = match before {
            Some(_) => Happened::Modified,
            None => Happened::Added,
        };
        self.record(kind, happened, object.clone(), before);
        object
    }

    /// Removes an object; its last version is returned.
    pub(crate) fn remove(&mut self, kind: KindId, key: &Key) -> Option<Stored> {
        let before = self.tables[kind].take(key)?;
        for owner in object::owners(&before.value) {
            if let Some(owned) = self.owned.get_mut(owner) {
                owned.remove(&(kind, key.clone()));
            }
        }
        if let Some(life) = self
            .lives
            .remove(object::text(&before.value, "/metadata/uid"))
        {
            life.send_replace(Life::Gone);
        }
        self.version += 1;
        let mut last = before.value.clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Object::new(last, self.version);
        self.record(kind, Happened::Deleted, last.clone(), Some(before));
        Some(last)
    }

    /// What an object with this uid owns.
    pub(crate) fn owned_by(&self, uid: &str) -> Vec<(KindId, Key)> {
        self.owned.get(uid).into_iter().flatten().cloned().collect()
    }

    /// The changes after `version`, at most `limit`; `None` if some of them are forgotten.
    pub(crate) fn changes_after(
        &self,
        kind: KindId,
        version: u64,
        limit: usize,
    ) -> Option<Vec<Change>> {
        let table = &self.tables[kind];
        if version < table.forgotten {
            return None;
        }
        let start = table
            .history
            .partition_point(|change| change.version <= version);
        Some(table.history.range(start..).take(limit).cloned().collect())
    }

    /// Forgets all history, so that older resource versions are expired.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.version;
        for table in &mut self.tables {
            if let Some(last) = table.history.back() {
                table.forgotten = last.version;
            }
            table.history.clear();
        }
    }

    fn record(&mut self, kind: KindId, happened: Happened, object: Stored, before: Option<Stored>) {
        let version = object.version;
        let table = &mut self.tables[kind];
        table.history.push_back(Change {
            version,
            happened,
            object,
            before,
        });
        if table.history.len() > self.history_limit
            && let Some(oldest) = table.history.pop_front()
        {
            table.forgotten = oldest.version;
        }
        table.version.send_replace(version);
    }
}

impl Table {
    /// The keys of all possible matches, if an index knows them.
    fn candidates(&self, selector: &Selector, namespace: Option<&str>) -> Option<BTreeSet<Key>> {
        if let (Some(name), Some(namespace)) = (selector.name(), namespace) {
            return Some(BTreeSet::from([Key::new(namespace, name)]));
        }
        if let Some(name) = selector.name() {
            let with_name = self.objects.keys().filter(|key| key.name == name);
            return Some(with_name.cloned().collect());
        }
        let candidates = selector.indexed().map(|(key, values)| {
            let index = self.index.get(key);
            let keys = |value| index.and_then(|index| index.get(value));
            values.iter().filter_map(keys).collect::<Vec<_>>()
        });
        let smallest =
            candidates.min_by_key(|all| all.iter().map(|keys| keys.len()).sum::<usize>())?;
        Some(smallest.into_iter().flatten().cloned().collect())
    }

    fn replace(&mut self, key: &Key, object: Stored) -> Option<Stored> {
        let before = self.take(key);
        for (name, value) in indexed(&object.value) {
            let values = self.index.entry(name).or_default();
            values.entry(value).or_default().insert(key.clone());
        }
        self.objects.insert(key.clone(), object);
        before
    }

    fn take(&mut self, key: &Key) -> Option<Stored> {
        let before = self.objects.remove(key)?;
        for (name, value) in indexed(&before.value) {
            if let Some(values) = self.index.get_mut(&name)
                && let Some(keys) = values.get_mut(&value)
            {
                keys.remove(key);
                if keys.is_empty() {
                    values.remove(&value);
                }
            }
        }
        Some(before)
    }
}

/// The labels of an object, and the fields that are indexed like labels.
fn indexed(value: &Value) -> Vec<(String, String)> {
    let labels = object::members(value, "/metadata/labels")
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    let fields = object::INDEXED_FIELDS
        .iter()
        .map(|field| ((*field).to_owned(), object::field(value, field)))
        .filter(|(_, value)| !value.is_empty());
    labels.chain(fields).collect()
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{CONFIG_MAPS, PODS};
    use super::*;

    fn pod(name: &str, app: &str) -> Value {
        json!({"metadata": {"namespace": "n", "name": name, "uid": name, "labels": {"app": app}}})
    }

    fn names(page: &Page) -> Vec<&str> {
        page.objects
            .iter()
            .map(|one| object::text(&one.value, "/metadata/name"))
            .collect()
    }

    #[test]
    fn an_index_follows_changed_labels() {
        let mut store = Store::new(1, 100);
        store.put(PODS, pod("a", "x"));
        store.put(PODS, pod("b", "y"));
        store.put(PODS, pod("a", "y"));
        let with = |store: &Store, labels| {
            let selector = Selector::parse(labels, "", "Pod").unwrap();
            names(&store.list(PODS, Some("n"), &selector, 10, None)).join(" ")
        };
        assert_eq!(with(&store, "app=x"), "");
        assert_eq!(with(&store, "app=y"), "a b");
        store.remove(PODS, &Key::new("n", "b"));
        assert_eq!(with(&store, "app=y"), "a");
    }

    #[test]
    fn pages_follow_each_other_within_a_namespace() {
        let mut store = Store::new(1, 100);
        for name in ["a", "b", "c"] {
            store.put(PODS, pod(name, "x"));
        }
        let all = Selector::default();
        let first = store.list(PODS, Some("n"), &all, 2, None);
        assert_eq!(names(&first), ["a", "b"]);
        let (next, left) = first.next.unwrap();
        assert_eq!(left, Some(1));
        let second = store.list(PODS, Some("n"), &all, 2, Some(&next));
        assert_eq!(names(&second), ["c"]);
        assert!(second.next.is_none());
        assert_eq!(
            store.list(PODS, Some("other"), &all, 2, None).objects.len(),
            0
        );
    }

    #[test]
    fn forgotten_changes_are_not_made_up() {
        let mut store = Store::new(1, 2);
        let first = store.put(PODS, pod("a", "1")).version;
        for label in ["2", "3", "4"] {
            store.put(PODS, pod("a", label));
        }
        store.put(
            CONFIG_MAPS,
            json!({"metadata": {"namespace": "n", "name": "c"}}),
        );
        assert!(store.changes_after(PODS, first, 10).is_none());
        assert_eq!(store.changes_after(PODS, first + 1, 10).unwrap().len(), 2);
        store.compact();
        assert_eq!(
            store
                .changes_after(PODS, store.version(), 10)
                .unwrap()
                .len(),
            0
        );
        assert!(store.changes_after(PODS, first + 1, 10).is_none());
        assert_eq!(store.oldest(CONFIG_MAPS), store.version());
    }
}
