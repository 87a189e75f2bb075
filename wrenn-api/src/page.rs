//! Lists in pages.

use serde::{Deserialize, Serialize};

/// The most items of a page, and how many it has unless asked otherwise.
pub const MAX_LIMIT: u32 = 100;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The `cursor` of the next page; null at the end.
    pub next_cursor: Option<String>,
}
