//! How Prefect 1 describes the environment of a flow run.
