//! Builds the guest kernel and templates, and installs them into a root directory.
//!
//! `cargo run -p wrenn-images --example build_images -- path/to/wrenn-envd path/to/root minimal`

use std::path::PathBuf;

use wrenn_images::{BuildError, Cache, Event, Progress, install, kernel, rootfs};

struct Lines;

impl Progress for Lines {
    #[expect(clippy::print_stderr, reason = "an example talks to its reader")]
    fn report(&self, event: Event<'_>) {
        eprintln!("{event:?}");
    }
}

fn main() -> Result<(), BuildError> {
    let mut arguments = std::env::args().skip(1);
    let envd = PathBuf::from(arguments.next().unwrap_or_else(|| "wrenn-envd".into()));
    let root = PathBuf::from(arguments.next().unwrap_or_else(|| "/var/lib/wrenn".into()));
    let cache = Cache::of_user()?;
    let kernel = kernel::guest_kernel(&cache, &envd, &Lines)?;
    let images = arguments
        .map(|name| rootfs::build(&name, &cache, &envd, &Lines))
        .collect::<Result<Vec<_>, _>>()?;
    install::install(&root, &kernel, &images)
}
