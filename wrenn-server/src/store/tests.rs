//! The store on SQLite, and its statements on both databases.

use super::*;
