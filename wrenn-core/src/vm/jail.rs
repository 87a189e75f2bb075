//! What a VMM sees of its host: a root directory of its own with next to nothing in it.
//!
//! ```text
//! /                        memory, 64 KiB, read-only
//! ├─ vmm                   the program, read-only: the only file that may be executed
//! ├─ dev/                  memory, read-only, the only place where devices work
//! │  ├─ kvm
//! │  ├─ net/tun
//! │  └─ <name>             a disk that is a block device
//! └─ run/wrenn/vm/
//!    ├─ vmlinux            the host's file, read-only; so is initrd.img
//!    ├─ rootfs.ext4        the sandbox's disk: its file, or the device above
//!    ├─ vmstate.bin        of what is restored, read-only, and its memory: memory.bin,
//!    │                     or the pager's pager.sock
//!    ├─ vmm.log            the sandbox's file
//!    └─ shared/            the sandbox's directory of this name: vmm.sock
//! ```
//!
//! Every path in it is the same for every sandbox, host and VMM. A snapshot names its
//! disk by path, so this is part of what makes one portable.
//!
//! Files are shown by bind mounts in a mount namespace that nobody else sees; the host's
//! root is unmounted before the program starts. What the VMM may write (disk, log and
//! the shared directory) belongs to the VM's own user, [`VmUser`]. Devices are new nodes
//! that belong to it too, so nothing of the host's `/dev` changes. There is no `/proc`
//! and no `/sys`: neither VMM needs one.
//!
//! All of this is done by the thread that starts the VMM, which ends afterwards; see
//! [`super::process`] for the rest of the jail.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};

/// The directory in which every VMM finds what is its own.
const STABLE_DIRECTORY: &str = "/run/wrenn/vm";
/// Where the program is.
pub(super) const PROGRAM: &str = "/vmm";
/// Where a new root is put together, in a namespace that only its VMM sees.
const WORKSHOP: &str = "/run/wrenn/jail";
/// It holds directories and names, no bytes.
const ROOT_OPTIONS: &str = "size=64k,nr_inodes=64,mode=0755";

/// Lowest number that may be a VM's user: below are those of people and services.
const FIRST_USER: u32 = 0x1_0000;
/// Highest: the kernel takes the two above for "nobody in particular".
const LAST_USER: u32 = u32::MAX - 2;

/// The user that one VM runs as, and its only group, which has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmUser(u32);

/// The users of a host's VMs: one for each network slot, which have numbers from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmUsers {
    base: u32,
}

/// Numbers that cannot be users of VMs.
#[derive(Debug, thiserror::Error)]
#[error(
    "{base} cannot be the base of the VMs' users: {} to {} can",
    FIRST_USER,
    LAST_USER - u32::from(u16::MAX)
)]
pub struct InvalidVmUsers {
    /// The number that was asked for.
    pub base: u32,
}

/// What a VMM is shown.
#[derive(Clone, Debug)]
pub struct JailSpec {
    /// Whom it runs as.
    pub user: VmUser,
    /// Files of the host.
    pub files: Vec<JailFile>,
    /// Devices of the host.
    pub devices: Vec<Device>,
}

/// A file, directory or block device of the host that a VMM is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailFile {
    host: PathBuf,
    name: String,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadOnly,
    /// It is given to the VM's user.
    Writable,
}

/// A device of the host that a VMM may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The hypervisor.
    Kvm,
    /// TAP interfaces; which one, the kernel decides by their owner.
    NetTun,
    /// Page faults of a restored guest, handled by another process. Missing on kernels
    /// before 6.1.
    Userfaultfd,
}

/// Why a jail could not be built.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A file of the host is not there.
    #[error("cannot look at {path}, which the VMM is to see")]
    Look {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the host is for some users only.
    #[error("{path} is not readable for everybody, and a VMM is nobody; run chmod a+r on it")]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be given to the VM's user.
    #[error("cannot give {path} to user {user}")]
    Give {
        /// The file.
        path: PathBuf,
        /// The user.
        user: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file, directory or device could not be put into the new root.
    #[error("cannot make {path} in the VMM's root")]
    Make {
        /// As the VMM would see it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount was refused.
    #[error("cannot {step} {path}")]
    Mount {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl VmUser {
    /// The bare number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl VmUsers {
    /// Users from `base` on.
    ///
    /// # Errors
    /// When they would include people, services, root or no valid user.
    pub fn new(base: u32) -> Result<Self, InvalidVmUsers> {
        let valid = FIRST_USER..=LAST_USER - u32::from(u16::MAX);
        if valid.contains(&base) {
            Ok(Self { base })
        } else {
            Err(InvalidVmUsers { base })
        }
    }

    /// The user of the VM that has this network slot.
    #[must_use]
    pub fn of_slot(self, slot: u16) -> VmUser {
        VmUser(self.base + u32::from(slot))
    }
}

impl Default for VmUsers {
    /// From `0x7700_0000` on, in the range that systemd and container engines leave alone.
    fn default() -> Self {
        Self { base: 0x7700_0000 }
    }
}

impl JailFile {
    /// Shows `host` under this plain file name, to be read only. It must be readable for
    /// everybody.
    pub fn read_only(host: impl Into<PathBuf>, name: &str) -> Self {
        Self::new(host, name, Access::ReadOnly)
    }

    /// Gives `host` to the VM's user and shows it under this plain file name. A block
    /// device gets a node of its own; the host's stays as it is.
    pub fn writable(host: impl Into<PathBuf>, name: &str) -> Self {
        Self::new(host, name, Access::Writable)
    }

    fn new(host: impl Into<PathBuf>, name: &str, access: Access) -> Self {
        Self {
            host: host.into(),
            name: name.to_owned(),
            access,
        }
    }

    /// The path by which the VMM knows it.
    #[must_use]
    pub fn inside(&self) -> PathBuf {
        path_inside(&self.name)
    }
}

/// The path by which a VMM knows the file of this name.
pub(super) fn path_inside(name: &str) -> PathBuf {
    Path::new(STABLE_DIRECTORY).join(name)
}

impl Device {
    /// Its path, on the host and in the jail.
    fn path(self) -> &'static Path {
        Path::new(match self {
            Self::Kvm => "/dev/kvm",
            Self::NetTun => "/dev/net/tun",
            Self::Userfaultfd => "/dev/userfaultfd",
        })
    }
}

/// Makes the calling thread's root directory that of the jail. The thread must have left
/// the mount namespace and the file system attributes that it shared with others.
pub(super) fn enter(spec: &JailSpec, program: &Path) -> Result<(), JailError> {
    let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let devices = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let only_program = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;

    remount("keep to itself", "/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    fs::create_dir_all(WORKSHOP).map_err(|source| JailError::Make {
        path: WORKSHOP.into(),
        source,
    })?;
    mount_memory(Path::new(WORKSHOP), sealed)?;
    make_directory(STABLE_DIRECTORY.as_ref())?;
    make_directory("/dev/net".as_ref())?;
    mount_memory(&under("/dev"), devices)?;
    make_directory("/dev/net".as_ref())?;

    make_file(PROGRAM.as_ref())?;
    bind(program, &under(PROGRAM), only_program)?;
    for device in &spec.devices {
        let found = look(device.path())?;
        make_node(device.path(), SFlag::S_IFCHR, found.rdev(), spec.user)?;
    }
    for file in &spec.files {
        show(file, spec.user, sealed)?;
    }

    let root = Path::new(WORKSHOP);
    remount(
        "seal",
        under("/dev"),
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | devices,
    )?;
    remount(
        "seal",
        root,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | sealed,
    )?;
    step("enter", root, || nix::unistd::chdir(root))?;
    // The old root comes to lie over the new one, from where it is taken away.
    step("make the root of", root, || {
        nix::unistd::pivot_root(".", ".")
    })?;
    step("unmount the host's", Path::new("/"), || {
        umount2(".", MntFlags::MNT_DETACH)
    })?;
    step("enter", Path::new("/"), || nix::unistd::chdir("/"))
}

/// Puts one file of the host into the new root.
fn show(file: &JailFile, user: VmUser, flags: MsFlags) -> Result<(), JailError> {
    let found = look(&file.host)?;
    let inside = file.inside();
    let flags = match file.access {
        Access::ReadOnly => flags | MsFlags::MS_RDONLY,
        Access::Writable => flags,
    };
    if found.file_type().is_block_device() {
        let node = Path::new("/dev").join(&file.name);
        make_node(&node, SFlag::S_IFBLK, found.rdev(), user)?;
        make_file(&inside)?;
        // From where devices work: the flags come along.
        let none = None::<&str>;
        return step("show", &inside, || {
            let to = under(&inside);
            mount(Some(&under(&node)), &to, none, MsFlags::MS_BIND, none)
        });
    }
    if file.access == Access::ReadOnly && found.mode() & 0o004 == 0 {
        return Err(JailError::Unreadable {
            path: file.host.clone(),
        });
    }
    if file.access == Access::Writable {
        chown(&file.host, Some(user.0), Some(user.0)).map_err(|source| JailError::Give {
            path: file.host.clone(),
            user: user.0,
            source,
        })?;
    }
    if found.is_dir() {
        make_directory(&inside)?;
    } else {
        make_file(&inside)?;
    }
    bind(&file.host, &under(&inside), flags)
}

/// Where a path of the new root is until it is the root.
fn under(inside: impl AsRef<Path>) -> PathBuf {
    let inside = inside.as_ref();
    Path::new(WORKSHOP).join(inside.strip_prefix("/").unwrap_or(inside))
}

fn look(path: &Path) -> Result<fs::Metadata, JailError> {
    fs::metadata(path).map_err(|source| JailError::Look {
        path: path.to_owned(),
        source,
    })
}

fn made<T>(inside: &Path, outcome: io::Result<T>) -> Result<T, JailError> {
    outcome.map_err(|source| JailError::Make {
        path: inside.to_owned(),
        source,
    })
}

fn make_directory(inside: &Path) -> Result<(), JailError> {
    let mut builder = fs::DirBuilder::new();
    made(
        inside,
        builder.recursive(true).mode(0o755).create(under(inside)),
    )
}

/// Something to mount a file on. It is never open: a process that is born at this moment on
/// behalf of another VM would have the descriptor too, and nothing that is open for writing
/// can be sealed.
fn make_file(inside: &Path) -> Result<(), JailError> {
    let mode = Mode::S_IRUSR | Mode::S_IRGRP | Mode::S_IROTH;
    let outcome = mknod(&under(inside), SFlag::S_IFREG, mode, 0);
    made(inside, outcome.map_err(io::Error::from))
}

fn make_node(inside: &Path, kind: SFlag, device: u64, user: VmUser) -> Result<(), JailError> {
    let path = under(inside);
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    made(
        inside,
        mknod(&path, kind, mode, device).map_err(io::Error::from),
    )?;
    made(inside, chown(&path, Some(user.0), Some(user.0)))
}

fn mount_memory(at: &Path, flags: MsFlags) -> Result<(), JailError> {
    step("mount memory on", at, || {
        let kind = Some("tmpfs");
        mount(Some("wrenn"), at, kind, flags, Some(ROOT_OPTIONS))
    })
}

/// A bind mount takes its flags in a second step.
fn bind(from: &Path, to: &Path, flags: MsFlags) -> Result<(), JailError> {
    let none = None::<&str>;
    step("show", from, || {
        mount(Some(from), to, none, MsFlags::MS_BIND, none)
    })?;
    remount("seal", to, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags)
}

fn remount(step_name: &'static str, at: impl AsRef<Path>, flags: MsFlags) -> Result<(), JailError> {
    let (none, at) = (None::<&str>, at.as_ref());
    step(step_name, at, || mount(none, at, none, flags, none))
}

fn step(
    step: &'static str,
    path: &Path,
    act: impl FnOnce() -> nix::Result<()>,
) -> Result<(), JailError> {
    act().map_err(|errno| JailError::Mount {
        step,
        path: path.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_vm_is_a_person_a_service_or_root() {
        for base in [0, 1000, 65_535, u32::MAX, u32::MAX - 2] {
            assert!(VmUsers::new(base).is_err(), "{base} was taken");
        }
        let users = VmUsers::new(100_000).unwrap();
        assert_eq!(users.of_slot(7).get(), 100_007);
        let highest = VmUsers::new(LAST_USER - u32::from(u16::MAX)).unwrap();
        assert_eq!(highest.of_slot(u16::MAX).get(), LAST_USER);
    }
}
