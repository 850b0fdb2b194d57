//! Everything that is known of the Jobs in a namespace, kept by changes; what is seen then.

use std::collections::{BTreeSet, HashMap, HashSet};

use agent_core::{Finding, JobState, Observation, Sighting};

use super::diagnose::{self, Graces, Since};
use super::view::{EventView, JobView, PodView};

/// A change to objects of one kind, of which only a view is kept.
pub(super) enum Change<V> {
    /// All that exist will be listed.
    Listing,
    /// One that exists.
    Is(V),
    /// One, by its name, that does not exist any more.
    IsNot(String),
    /// All that exist were listed.
    Listed,
    /// The watch has broken off.
    Broken {
        reason: String,
        /// The API server does not let this agent see objects of this kind.
        forbidden: bool,
    },
}

/// A change to one kind of object.
pub(super) enum Seen {
    Job(Change<JobView>),
    Pod(Change<PodView>),
    Event(Change<(String, EventView)>),
    /// The events take too long to be listed.
    EventsLate,
}

/// Everything that is known of the Jobs in the namespace.
#[derive(Default)]
pub(super) struct Index {
    graces: Graces,
    jobs: HashMap<String, JobView>,
    pods: HashMap<String, PodView>,
    events: HashMap<String, EventView>,
    /// Names of Jobs by identifier, and of their pods: seldom more than one.
    by_identifier: HashMap<String, (Option<String>, Vec<String>)>,
    /// Keys of events by the object that they are about.
    by_object: HashMap<String, BTreeSet<String>>,
    /// When something about a Job was seen first.
    since: HashMap<String, Since>,
    /// What a listing that goes on has shown so far.
    listed: [Option<HashSet<String>>; 3],
    /// Jobs, pods and events were listed once; or there is nothing to wait for.
    complete: [bool; 3],
    /// This agent may not see pods, so that their absence means nothing.
    pods_hidden: bool,
}

impl Seen {
    /// The watch that has broken off, and why.
    fn broken(&self) -> Option<(&'static str, &String)> {
        match self {
            Self::Job(Change::Broken { reason, .. }) => Some(("jobs", reason)),
            Self::Pod(Change::Broken { reason, .. }) => Some(("pods", reason)),
            Self::Event(Change::Broken { reason, .. }) => Some(("events", reason)),
            _ => None,
        }
    }
}

impl Index {
    pub(super) fn new(graces: Graces) -> Self {
        Self {
            graces,
            ..Self::default()
        }
    }

    /// Whether everything is known that was there at first, as far as this agent may see it. A Job
    /// whose events are not known yet would be deleted before its run's owner was told of them.
    fn is_complete(&self) -> bool {
        self.knows_pods() && self.complete[2]
    }

    fn knows_pods(&self) -> bool {
        self.complete[0] && (self.complete[1] || self.pods_hidden)
    }

    /// Takes in a change; what is seen then.
    pub(super) fn take_in(&mut self, seen: Seen) -> Vec<Sighting> {
        let broken = seen.broken().map(|(watch, reason)| {
            tracing::warn!("The watch over {watch} broke off: {reason}");
            let reason = reason.clone();
            Sighting::Broken { watch, reason }
        });
        broken.into_iter().chain(self.news(seen)).collect()
    }

    /// What is new after a change.
    fn news(&mut self, seen: Seen) -> Vec<Sighting> {
        let before = self.is_complete();
        let jobs = self.apply(seen).into_iter().map(Sighting::Job);
        let complete = self.is_complete() && !before;
        jobs.chain(complete.then_some(Sighting::Complete)).collect()
    }

    /// Takes in a change; the observations of the Jobs that it concerns.
    fn apply(&mut self, seen: Seen) -> Vec<Observation> {
        let (knew_pods, before) = (self.knows_pods(), self.is_complete());
        let (touched, gone) = match seen {
            Seen::Job(change) => self.job(change),
            Seen::Pod(change) => (self.pod(change), Vec::new()),
            Seen::Event(change) => (self.event(change), Vec::new()),
            Seen::EventsLate => {
                self.complete[2] = true;
                (Vec::new(), Vec::new())
            }
        };
        let complete = self.is_complete();
        let mut found = gone;
        if self.knows_pods() && !knew_pods {
            let foreign = self
                .events
                .iter()
                .filter(|(_, event)| !self.concerns_us(event));
            let foreign: Vec<String> = foreign.map(|(key, _)| key.clone()).collect();
            for key in foreign {
                self.remove_event(&key);
            }
        }
        if complete && !before {
            let all: Vec<String> = self.jobs.keys().cloned().collect();
            found.extend(all.iter().filter_map(|name| self.observe(name)));
        } else if complete {
            found.extend(touched.iter().filter_map(|name| self.observe(name)));
        }
        found
    }

    /// Notes that a listing, if one goes on, has shown this.
    fn is_there(&mut self, kind: usize, name: &str) {
        if let Some(listed) = &mut self.listed[kind] {
            listed.insert(name.to_owned());
        }
    }

    fn job(&mut self, change: Change<JobView>) -> (Vec<String>, Vec<Observation>) {
        match change {
            Change::Listing => self.listed[0] = Some(HashSet::new()),
            Change::Is(view) => {
                let name = view.name.clone();
                self.is_there(0, &name);
                let entry = self
                    .by_identifier
                    .entry(view.identifier.clone())
                    .or_default();
                entry.0 = Some(name.clone());
                let news = self.jobs.get(&name) != Some(&view);
                self.jobs.insert(name.clone(), view);
                return (news.then_some(name).into_iter().collect(), Vec::new());
            }
            Change::IsNot(name) => {
                return (Vec::new(), self.remove_job(&name).into_iter().collect());
            }
            Change::Listed => {
                self.complete[0] = true;
                let missing = missing(&self.jobs, self.listed[0].take());
                let gone = missing.iter().filter_map(|name| self.remove_job(name));
                return (Vec::new(), gone.collect());
            }
            Change::Broken { .. } => {}
        }
        Default::default()
    }

    fn remove_job(&mut self, name: &str) -> Option<Observation> {
        let mut findings = Vec::new();
        if self.jobs.get(name)?.failed.is_some() {
            findings = Finding::left(self.findings(name));
        }
        let job = self.jobs.remove(name)?;
        self.since.remove(name);
        if let Some(entry) = self.by_identifier.get_mut(&job.identifier) {
            entry.0 = None;
            if entry.1.is_empty() {
                self.by_identifier.remove(&job.identifier);
            }
        }
        // What the agent deletes itself has ended, or has been told of.
        if job.complete {
            findings.push(diagnose::vanished(&job));
        } else if job.failed.is_none() && !job.ending {
            findings.push(diagnose::gone(&job));
        }
        Some(Observation {
            findings,
            job: job.name,
            flow_run_id: job.run,
            state: JobState::Gone,
            own: job.own,
            created_at: None,
            ended_at: None,
            kept: job.kept,
        })
    }

    fn pod(&mut self, change: Change<PodView>) -> Vec<String> {
        match change {
            Change::Listing => self.listed[1] = Some(HashSet::new()),
            Change::Is(view) => {
                self.is_there(1, &view.name);
                let entry = self
                    .by_identifier
                    .entry(view.identifier.clone())
                    .or_default();
                if let Err(place) = entry.1.binary_search(&view.name) {
                    entry.1.insert(place, view.name.clone());
                }
                let touched = entry.0.clone();
                if let Some(job) = &touched {
                    // That it could not make pods is over.
                    self.remove_events_of(job);
                }
                if view.has_started() {
                    self.remove_events_of(&view.name);
                }
                let news = self.pods.get(&view.name) != Some(&view);
                self.pods.insert(view.name.clone(), view);
                return touched.filter(|_| news).into_iter().collect();
            }
            Change::IsNot(name) => self.remove_pod(&name),
            Change::Listed => {
                self.complete[1] = true;
                let shown = std::mem::take(&mut self.pods_hidden);
                let missing = missing(&self.pods, self.listed[1].take());
                for name in missing {
                    self.remove_pod(&name);
                }
                if shown {
                    return self.jobs.keys().cloned().collect();
                }
            }
            Change::Broken {
                forbidden: true, ..
            } if !self.pods_hidden => {
                // What the Jobs themselves show is better than nothing.
                tracing::warn!("Pods are not seen: flow runs are told only what their Jobs show");
                self.pods_hidden = true;
                let known: Vec<String> = self.pods.keys().cloned().collect();
                for name in known {
                    self.remove_pod(&name);
                }
                return self.jobs.keys().cloned().collect();
            }
            Change::Broken { .. } => {}
        }
        Vec::new()
    }

    fn remove_pod(&mut self, name: &str) {
        let Some(pod) = self.pods.remove(name) else {
            return;
        };
        if let Some(entry) = self.by_identifier.get_mut(&pod.identifier) {
            entry.1.retain(|one| one != name);
            if entry.0.is_none() && entry.1.is_empty() {
                self.by_identifier.remove(&pod.identifier);
            }
        }
    }

    fn event(&mut self, change: Change<(String, EventView)>) -> Vec<String> {
        match change {
            Change::Listing => self.listed[2] = Some(HashSet::new()),
            Change::Is((key, view)) => {
                if self.knows_pods() && !self.concerns_us(&view) {
                    return Vec::new();
                }
                let pod = self.pods.get(&view.object).filter(|_| !view.of_job);
                let is_over = match view.of_job {
                    true => self.has_pods(&view.object),
                    false => pod.is_some_and(PodView::has_started),
                };
                if is_over {
                    return Vec::new();
                }
                self.is_there(2, &key);
                let touched = if view.of_job {
                    Some(view.object.clone()).filter(|name| self.jobs.contains_key(name))
                } else {
                    self.job_of_pod(&view.object)
                };
                let events = self.by_object.entry(view.object.clone()).or_default();
                events.insert(key.clone());
                self.events.insert(key, view);
                return touched.into_iter().collect();
            }
            Change::IsNot(key) => self.remove_event(&key),
            Change::Listed => {
                self.complete[2] = true;
                let missing = missing(&self.events, self.listed[2].take());
                for key in missing {
                    self.remove_event(&key);
                }
            }
            // They may be forbidden. What can be told without them does not wait for them.
            Change::Broken { .. } => self.complete[2] = true,
        }
        Vec::new()
    }

    fn has_pods(&self, job: &str) -> bool {
        let job = self.jobs.get(job);
        let entry = job.and_then(|job| self.by_identifier.get(&job.identifier));
        entry.is_some_and(|(_, pods)| !pods.is_empty())
    }

    /// Whether an event is about a Job of ours or a pod of one; in a busy namespace most are not.
    fn concerns_us(&self, event: &EventView) -> bool {
        let job = match event.object.rsplit_once('-') {
            Some((job, _)) if !event.of_job => job,
            _ => &event.object,
        };
        self.jobs.contains_key(job) || self.pods.contains_key(&event.object)
    }

    fn remove_event(&mut self, key: &str) {
        let Some(event) = self.events.remove(key) else {
            return;
        };
        if let Some(keys) = self.by_object.get_mut(&event.object) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_object.remove(&event.object);
            }
        }
    }

    /// Once a pod has started, nothing is told of its events.
    fn remove_events_of(&mut self, pod: &str) {
        for key in self.by_object.remove(pod).unwrap_or_default() {
            self.events.remove(&key);
        }
    }

    fn job_of_pod(&self, pod: &str) -> Option<String> {
        let identifier = &self.pods.get(pod)?.identifier;
        self.by_identifier.get(identifier)?.0.clone()
    }

    /// A Job with everything that is known of it; `None` while it is being deleted.
    fn observe(&mut self, name: &str) -> Option<Observation> {
        self.jobs.get(name).filter(|job| !job.deleting)?;
        let findings = self.findings(name);
        let job = self.jobs.get(name)?;
        Some(Observation {
            job: job.name.clone(),
            flow_run_id: job.run.clone(),
            own: job.own,
            kept: job.kept,
            created_at: job.created_at,
            ended_at: job.ended_at,
            state: match (job.complete, &job.failed) {
                (true, _) => JobState::Succeeded,
                (false, Some(_)) => JobState::Failed,
                (false, None) => JobState::Active,
            },
            findings,
        })
    }

    /// What there is to tell of a Job.
    fn findings(&mut self, name: &str) -> Vec<Finding> {
        let Some(job) = self.jobs.get(name) else {
            return Vec::new();
        };
        let names = self.by_identifier.get(&job.identifier);
        let pods: Vec<&PodView> = names
            .into_iter()
            .flat_map(|(_, pods)| pods)
            .filter_map(|pod| self.pods.get(pod))
            .collect();
        let mut events: Vec<&EventView> = pods
            .iter()
            .map(|pod| &pod.name)
            .chain([&job.name])
            .filter_map(|object| self.by_object.get(object))
            .flatten()
            .filter_map(|key| self.events.get(key))
            .collect();
        events.sort_by_key(|event| event.at);
        if self.pods_hidden {
            // That a pod could not be created matters only while there is none.
            events.clear();
        }
        let mut since = self.since.remove(name).unwrap_or_default();
        let findings = diagnose::findings(job, &pods, &events, &self.graces, &mut since);
        if !since.is_empty() {
            self.since.insert(name.to_owned(), since);
        }
        findings
    }
}

/// The names of what is known but was not listed.
fn missing<V>(known: &HashMap<String, V>, listed: Option<HashSet<String>>) -> Vec<String> {
    let listed = listed.unwrap_or_default();
    let names = known.keys().filter(|name| !listed.contains(*name));
    names.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::view::{ContainerState, ContainerView};
    use super::*;

    fn job(failed: Option<&str>, told: &[&str]) -> JobView {
        JobView {
            name: "job".to_owned(),
            identifier: "1".to_owned(),
            run: "run".into(),
            told: told.iter().map(|key| (*key).to_owned()).collect(),
            ending: !told.is_empty(),
            own: true,
            kept: false,
            complete: false,
            failed: failed.map(str::to_owned),
            deleting: failed.is_some(),
            created_at: None,
            ended_at: None,
        }
    }

    /// What is seen of a Job that goes when it was as given.
    fn going(last: JobView) -> Observation {
        let mut index = Index::default();
        for seen in [
            Seen::Job(Change::Listing),
            Seen::Job(Change::Is(last)),
            Seen::Job(Change::Listed),
            Seen::Pod(Change::Listing),
            Seen::Pod(Change::Listed),
            Seen::Event(Change::Listing),
            Seen::Event(Change::Listed),
        ] {
            index.take_in(seen);
        }
        let mut seen = index.apply(Seen::Job(Change::IsNot("job".to_owned())));
        assert_eq!(seen.len(), 1);
        seen.remove(0)
    }

    #[test]
    fn a_failed_job_that_goes_before_it_was_told_of_fails_its_run_at_once() {
        let seen = going(job(Some("BackoffLimitExceeded: too often"), &[]));
        assert_eq!(seen.state, JobState::Gone);
        let failure = seen.findings.iter().find_map(|one| one.failure.as_ref());
        assert!(failure.expect("one").contains("BackoffLimitExceeded"));
        assert!(seen.findings.iter().all(|one| one.not_before.is_none()));
    }

    #[test]
    fn a_job_that_goes_after_it_was_told_of_is_no_news() {
        let seen = going(job(Some("BackoffLimitExceeded: too often"), &["job"]));
        assert_eq!(seen.findings, []);
        assert_eq!(going(job(None, &["w1"])).findings, []);
        assert_eq!(going(job(None, &[])).findings.len(), 1);
    }

    /// Its deadline, for instance, has passed; nobody leads for a while.
    #[test]
    fn a_failed_job_that_goes_with_a_pod_that_never_started_fails_its_run_for_what_it_was() {
        let mut index = index();
        index.apply(Seen::Pod(Change::Is(pod(waiting()))));
        let mut failed = job(Some("DeadlineExceeded: too long"), &[]);
        failed.deleting = false;
        index.apply(Seen::Job(Change::Is(failed)));
        let gone = index.apply(Seen::Job(Change::IsNot("job".to_owned())));
        let keys: Vec<&str> = gone[0].findings.iter().map(|one| &*one.key).collect();
        assert_eq!(keys, ["job"]);
    }

    fn refused() -> Seen {
        let event = EventView {
            uid: "1".to_owned(),
            of_job: true,
            object: "job".to_owned(),
            reason: "FailedCreate".to_owned(),
            message: "exceeded quota".to_owned(),
            at: None,
        };
        Seen::Event(Change::Is(("event".to_owned(), event)))
    }

    /// A pod, of which each container is in this state.
    fn pod(state: ContainerState) -> PodView {
        PodView {
            name: "job-abcde".to_owned(),
            uid: "2".to_owned(),
            identifier: "1".to_owned(),
            phase: "Pending".to_owned(),
            reason: None,
            message: None,
            disruption: None,
            unschedulable: None,
            containers: vec![ContainerView {
                name: "flow".to_owned(),
                state,
            }],
        }
    }

    fn waiting() -> ContainerState {
        ContainerState::Waiting {
            reason: "CreateContainerConfigError".to_owned(),
            message: "no secret".to_owned(),
        }
    }

    /// An index of one Job that is at work.
    fn index() -> Index {
        let mut index = Index::default();
        for seen in [
            Seen::Job(Change::Listing),
            Seen::Job(Change::Is(job(None, &[]))),
            Seen::Job(Change::Listed),
            Seen::Pod(Change::Listing),
            Seen::Pod(Change::Listed),
            Seen::Event(Change::Listing),
            Seen::Event(Change::Listed),
        ] {
            index.take_in(seen);
        }
        index
    }

    /// A new process would delete a Job before it knew what else there is to tell.
    #[test]
    fn nothing_is_seen_of_a_job_before_its_events_are_known_or_cannot_be() {
        let broken = || Change::Broken {
            forbidden: false,
            reason: "no route".to_owned(),
        };
        let ends = [
            Seen::Event(Change::Listed),
            Seen::Event(broken()),
            Seen::EventsLate,
        ];
        for end in ends {
            let mut index = Index::default();
            let seen = [
                Seen::Event(Change::Listing),
                Seen::Pod(Change::Listing),
                Seen::Pod(Change::Listed),
                Seen::Job(Change::Listing),
                Seen::Job(Change::Is(job(None, &[]))),
                Seen::Job(Change::Listed),
                refused(),
            ];
            for seen in seen {
                assert_eq!(index.take_in(seen), []);
            }
            let seen = index.take_in(end);
            let complete = seen.contains(&Sighting::Complete);
            let jobs = seen.into_iter().filter_map(|one| match one {
                Sighting::Job(job) => Some(job.findings.len()),
                _ => None,
            });
            assert_eq!((jobs.collect::<Vec<_>>(), complete), (vec![2], true));
        }
    }

    #[test]
    fn that_a_job_could_not_make_its_pod_is_over_once_there_was_one() {
        let mut index = index();
        let keys = |seen: &[Observation]| {
            let findings = seen.iter().flat_map(|one| &one.findings);
            findings.map(|one| one.key.clone()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&index.apply(refused())).len(), 2);
        let there = Seen::Pod(Change::Is(pod(ContainerState::Running)));
        index.apply(there);
        // It stays in the cluster for an hour, and is listed again.
        index.apply(refused());
        index.apply(Seen::Pod(Change::IsNot("job-abcde".to_owned())));
        let later = index.observe("job").expect("it is there");
        assert_eq!(keys(&[later]), [""; 0]);
    }

    #[test]
    fn the_grace_of_a_container_that_cannot_start_begins_anew_after_it_was_running() {
        let mut index = index();
        let mut due = |state| {
            let seen = index.apply(Seen::Pod(Change::Is(pod(state))));
            let mut findings = seen.into_iter().flat_map(|one| one.findings);
            findings.find_map(|one| one.not_before)
        };
        let first = due(waiting());
        assert_eq!(due(ContainerState::NotFound), None);
        assert_eq!(due(waiting()), first, "it never ran");
        assert_eq!(due(ContainerState::Running), None);
        assert_ne!(due(waiting()), first);
    }
}
