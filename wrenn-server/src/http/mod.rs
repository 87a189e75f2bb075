//! HTTP: routes that extract, call a service, and answer.
//!
//! | file | routes |
//! |---|---|
//! | `router` | all of them, with their layers |
//! | `listener` | accepts connections, with deadlines |
//! | `preface` | the deadline of a connection's first bytes |
//! | `guard` | Host and Origin, request ids, the access log |
//! | `authentication` | API key, bearer token or session |
//! | `extract` | strict bodies and queries |
//! | `error` | the one place where an error becomes an answer |
//! | `idempotency` | the Idempotency-Key of a request, and answers that are replayed |
//! | `sandboxes`, `exec`, `exec_stream`, `logs`, `files`, `transfers`, `snapshots`, `templates`, `events`, `server_info`, `orphans` | `/v1` |
//! | `pages` | `/docs`, `/test`, `/openapi.*`, `/healthz`, `/readyz` |
//! | [`openapi`] | the description of all of it |

pub(crate) mod authentication;
pub(crate) mod error;
mod events;
mod exec;
mod exec_stream;
mod extract;
mod files;
mod guard;
mod idempotency;
pub(crate) mod listener;
mod logs;
pub mod openapi;
mod orphans;
mod pages;
mod preface;
pub(crate) mod router;
mod sandboxes;
mod server_info;
mod snapshots;
mod templates;
mod transfers;
