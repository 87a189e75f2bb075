//! How far a copy is: a bar at a terminal, nothing elsewhere.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};
use wrenn_sdk::Progress;

use crate::escape;

/// A bar on standard error.
#[derive(Clone, Debug)]
pub(super) struct TransferBar(ProgressBar);

impl TransferBar {
    pub(super) fn new(name: &str, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::no_length();
        bar.set_style(style("{prefix} {bytes} {bytes_per_sec} {elapsed:.dim}"));
        bar.set_prefix(escape::line(name));
        Self(bar)
    }

    pub(super) fn show(&self, progress: Progress) {
        if let Some(total) = progress.total
            && self.0.length() != Some(total)
        {
            self.0.set_length(total);
            let with_end = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta:.dim}";
            self.0.set_style(style(with_end));
        }
        self.0.set_position(progress.done);
    }

    /// A callback for the SDK.
    pub(super) fn observer(&self) -> impl FnMut(Progress) + Send + 'static {
        let bar = self.clone();
        move |progress| bar.show(progress)
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
