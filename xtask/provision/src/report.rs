//! Shows what happens while images are built.

use std::sync::atomic::{AtomicUsize, Ordering};

use wrenn_images::{Event, Progress};

/// Writes one line to standard error for every step that begins or ends, indented by how
/// deep it is nested.
#[derive(Debug, Default)]
pub(crate) struct Report {
    depth: AtomicUsize,
}

impl Progress for Report {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Started { step } => {
                let depth = self.depth.fetch_add(1, Ordering::Relaxed);
                line(depth, format_args!("{step} …"));
            }
            // What is there already is not worth a line: the second run is a quiet one.
            Event::Reused { .. } => {}
            Event::Finished { step, elapsed } => {
                let depth = self.depth.fetch_sub(1, Ordering::Relaxed) - 1;
                line(
                    depth,
                    format_args!("{step}: {:.1} s", elapsed.as_secs_f64()),
                );
            }
            Event::Failed { step } => {
                let depth = self.depth.fetch_sub(1, Ordering::Relaxed) - 1;
                line(depth, format_args!("{step}: failed"));
            }
        }
    }
}

fn line(depth: usize, text: std::fmt::Arguments<'_>) {
    eprintln!("   {:indent$}{text}", "", indent = depth * 2);
}
