//! The machine's two disks, known by their serial numbers.
//!
//! ```text
//! wrenn-images  ext4, read-only   kernels/ templates/, made anew when one of them changes
//! wrenn-data    XFS with reflink  /var/lib/wrenn; may be thrown away while it is stopped
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use wrenn_core::RootDirectory;
use wrenn_core::sandbox::SandboxImages;
use wrenn_core::template;

use crate::boot::{At, BootError};
use crate::kernel_log;

const IMAGES: &str = "wrenn-images";
const DATA: &str = "wrenn-data";
const IMAGES_AT: &str = "/run/wrenn/images";
/// Disks are there a moment after their driver; a machine that is so slow is broken.
const APPEAR_WITHIN: Duration = Duration::from_secs(20);

/// Mounts the data disk at `root` and copies to it what is new on the image disk. Older
/// images go, but for those that sandboxes on the data disk are made from.
pub(crate) fn mount_and_install(root: &Path) -> Result<(), BootError> {
    let data = find(DATA)?;
    fs::create_dir_all(root).at("create", root)?;
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV;
    mount(Some(&data), root, Some("xfs"), flags, None::<&str>).at("mount", root)?;

    let images = find(IMAGES)?;
    fs::create_dir_all(IMAGES_AT).at("create", IMAGES_AT)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(Some(&images), IMAGES_AT, Some("ext4"), flags, None::<&str>).at("mount", IMAGES_AT)?;
    wrenn_images::install::copy_root(Path::new(IMAGES_AT), root).map_err(BootError::Install)?;
    // A template that was on its way when the machine stopped is sent again by whoever wants it.
    if let Err(error) = fs::remove_dir_all(root.join(wrenn_images::transfer::RECEIVED))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        kernel_log::failure(&error);
    }
    let root = RootDirectory::new(root);
    // What is left over takes room and hurts nobody.
    if let Err(error) = template::prune_all(&root, &SandboxImages::of(&root)) {
        kernel_log::failure(&error);
    }
    umount2(IMAGES_AT, MntFlags::empty()).at("unmount", IMAGES_AT)
}

fn find(serial: &'static str) -> Result<PathBuf, BootError> {
    let deadline = Instant::now() + APPEAR_WITHIN;
    loop {
        for entry in fs::read_dir("/sys/block").at("list", "/sys/block")? {
            let entry = entry.at("list", "/sys/block")?;
            let number = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            let node = Path::new("/dev").join(entry.file_name());
            if number.trim() == serial && node.exists() {
                return Ok(node);
            }
        }
        if Instant::now() > deadline {
            return Err(BootError::NoDisk { serial });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
