//! Builds the guest kernel and prints where it lies.
//!
//! `cargo run -p wrenn-images --example build_images -- path/to/wrenn-envd`

use std::path::PathBuf;

use wrenn_images::{BuildError, Cache, Event, Progress, kernel};

struct Lines;

impl Progress for Lines {
    #[expect(clippy::print_stderr, reason = "an example talks to its reader")]
    fn report(&self, event: Event<'_>) {
        eprintln!("{event:?}");
    }
}

#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
fn main() -> Result<(), BuildError> {
    let envd = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("wrenn-envd"), PathBuf::from);
    let kernel = kernel::guest_kernel(&Cache::of_user()?, &envd, &Lines)?;
    println!("{} in {}", kernel.description.id, kernel.dir.display());
    Ok(())
}
