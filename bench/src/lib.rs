//! What a benchmark reports: one [`Record`] per figure, as JSON for programs and as a
//! table for people.
//!
//! A benchmark program writes one JSON array of records to standard output and its
//! progress to standard error. `cargo xtask bench` runs it where virtual machines can
//! run, gathers the records of all programs, prints the table and writes the file.
//!
//! ```text
//! samples ──Record::of──▶ p50, p95, p99 ──against──▶ baseline, ratio ──▶ JSON, table
//! ```
//!
//! Under emulation everything is many times slower than on hardware. So a figure means
//! something only beside its baseline, measured in the same run.

mod record;
mod table;

pub use record::{Baseline, Record};
pub use table::table;
