//! Shows the steps of a long set-up on standard error: a spinner with the time so far at a
//! terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use wrenn_images::progress::{Event, Progress};

const TICK: Duration = Duration::from_millis(120);

/// Draws steps as they come. Steps nest, so several may run at once.
#[derive(Debug)]
pub(crate) struct Steps {
    bars: MultiProgress,
    running: Mutex<Vec<(String, ProgressBar)>>,
    terminal: bool,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self {
            bars: MultiProgress::new(),
            running: Mutex::default(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn begin(&self, step: &str) {
        if !self.terminal {
            eprintln!("wrenn: {step} …");
            return;
        }
        let bar = self.bars.add(ProgressBar::new_spinner());
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(step.to_owned());
        bar.enable_steady_tick(TICK);
        self.lock().push((step.to_owned(), bar));
    }

    fn end(&self, step: &str, outcome: &str) {
        if !self.terminal {
            eprintln!("wrenn: {step}: {outcome}");
            return;
        }
        let mut running = self.lock();
        if let Some(position) = running.iter().rposition(|(name, _)| name == step) {
            let (_, bar) = running.remove(position);
            bar.finish_and_clear();
        }
        drop(running);
        // A line that cannot be shown is no reason to stop the work.
        let _shown = self.bars.println(format!("{step}: {outcome}"));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, ProgressBar)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Steps {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Started { step } => self.begin(step),
            // What was there already is not worth a line each time.
            Event::Reused { .. } => {}
            Event::Finished { step, elapsed } => {
                self.end(step, &format!("{:.1} s", elapsed.as_secs_f64()))
            }
            Event::Failed { step } => self.end(step, "failed"),
        }
    }
}
