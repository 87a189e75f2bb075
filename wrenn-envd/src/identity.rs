//! What programs take for unique to one run of one machine.
//!
//! Guests of one snapshot have the same boot identifier in their kernel, which cannot be
//! changed there. So a guest that gets a name of its own gets a file with another one mounted
//! over it, and another machine identifier.

use std::fs;
use std::io;
use std::path::Path;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT_ID: &str = "/run/wrenn-boot-id";
const MACHINE_ID: &str = "/etc/machine-id";
/// Gives another one each time.
const UUID: &str = "/proc/sys/kernel/random/uuid";

/// Becomes somebody else. Random numbers must be fresh by now.
pub fn renew() -> io::Result<()> {
    let boot_id = fs::read_to_string(UUID)?;
    fs::write(OWN_BOOT_ID, &boot_id)?;
    // The mount of an earlier time shows the same file.
    if fs::read_to_string(BOOT_ID)? != boot_id {
        rustix::mount::mount_bind(OWN_BOOT_ID, BOOT_ID)?;
    }
    if Path::new(MACHINE_ID).exists() {
        let id = fs::read_to_string(UUID)?.replace('-', "");
        fs::write(MACHINE_ID, id)?;
    }
    Ok(())
}
