//! What the HTTP side and the in-process handle share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use uuid::Uuid;

use super::states::StateRules;
use super::store::Store;
use crate::clock::Clock;
use crate::condition::Changes;
use crate::faults::Faults;
use crate::requests::Requests;

/// How the server checks the key in `Authorization: Bearer <key>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Any key or none will do.
    #[default]
    Open,
    /// Another key, or none, is answered with status 401.
    Status401(String),
    /// Another key, or none, is answered as Cloud does: status 200 and the error UNAUTHENTICATED.
    CloudError(String),
}

impl Auth {
    pub(crate) fn accepts(&self, key: Option<&str>) -> bool {
        match self {
            Self::Open => true,
            Self::Status401(wanted) | Self::CloudError(wanted) => key == Some(wanted.as_str()),
        }
    }
}

/// The state of one server.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    pub(crate) rules: StateRules,
    pub(crate) auth: Mutex<Auth>,
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
    pub(crate) requests: Requests,
    pub(crate) changes: Changes,
}

impl Shared {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the headers of a request tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    pub(crate) agent_id: Option<Uuid>,
    pub(crate) core_version: Option<String>,
}
