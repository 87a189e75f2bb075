//! Shows the steps of a long set-up on standard error: a spinner with the time so far at a
//! terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use wrenn_images::import::{Phase, Update};
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
            drop_eprintln!("wrenn: {step} …");
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
            drop_eprintln!("wrenn: {step}: {outcome}");
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

/// Shows how far an import is: a bar at a terminal, nothing elsewhere.
#[derive(Debug)]
pub(crate) struct ImportBar {
    bar: ProgressBar,
    phase: Mutex<Option<Phase>>,
}

impl ImportBar {
    pub(crate) fn new(name: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        bar.set_prefix(name.to_owned());
        Self {
            bar,
            phase: Mutex::default(),
        }
    }

    pub(crate) fn show(&self, update: Update) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase != Some(update.phase) {
            *phase = Some(update.phase);
            self.begin(update);
        }
        if let Some(total) = update.total {
            self.bar.set_length(total);
        }
        self.bar.set_position(update.done);
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn begin(&self, update: Update) {
        let style = match update.total {
            Some(_) => "{prefix}: {msg} {wide_bar} {bytes}/{total_bytes} {elapsed:.dim}",
            None => "{spinner} {prefix}: {msg} {elapsed:.dim}",
        };
        let style = ProgressStyle::with_template(style);
        self.bar
            .set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        self.bar.set_message(match update.phase {
            Phase::Unpacking => "unpacking",
            Phase::MakingFilesystem => "making the file system",
            Phase::Finishing => "checking",
        });
        self.bar.enable_steady_tick(TICK);
    }
}

/// Shows how much of something was sent: a bar at a terminal, nothing elsewhere.
#[derive(Debug)]
pub(crate) struct SendBar(ProgressBar);

impl SendBar {
    pub(crate) fn new(name: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::no_length();
        let style = "{spinner} {prefix}: sending {bytes} {bytes_per_sec} {elapsed:.dim}";
        let style = ProgressStyle::with_template(style);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Counts what is written to `out`.
    pub(crate) fn counting<W: std::io::Write>(&self, out: W) -> impl std::io::Write + use<W> {
        self.0.wrap_write(out)
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
