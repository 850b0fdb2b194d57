//! The real servers, installed once for all tests.

use std::path::Path;
use std::sync::OnceLock;

use agent_testkit::stores::Stores;

/// The servers, or why there are none.
pub(crate) fn installed() -> Result<&'static Stores, String> {
    static STORES: OnceLock<Result<Stores, String>> = OnceLock::new();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("template-servers");
    let install = || Stores::install(&folder).map_err(|error| format!("{error:#}"));
    let stores = STORES.get_or_init(install).as_ref();
    stores.map_err(Clone::clone)
}

/// The servers, in a test that is skipped without them.
pub(crate) fn stores() -> &'static Stores {
    installed().expect("installed")
}
