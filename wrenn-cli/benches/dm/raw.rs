//! The floor: what the kernel itself takes for a disk, with nothing of ours around it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::sys::{self, Access, Command, Message};
use crate::write;

const NAME: &str = "bench-raw";
const SECTOR: u64 = 512;

/// What all disks share: the control devices, and the image's loop device.
pub(crate) struct Bare {
    control: File,
    loops: File,
    image: (File, u32),
    sectors: u64,
    node: PathBuf,
}

/// One disk. Its loop device detaches when this is dropped.
struct Disk {
    _store: File,
}

impl Bare {
    pub(crate) fn open(image: &Path) -> anyhow::Result<Self> {
        let open = |path: &str| {
            let file = File::options().read(true).write(true).open(path);
            file.with_context(|| format!("cannot open {path}"))
        };
        let loops = open("/dev/loop-control")?;
        let file = File::open(image)?;
        Ok(Self {
            control: open("/dev/mapper/control")?,
            sectors: file.metadata()?.len() / SECTOR,
            image: attach(&loops, &file, Access::ReadOnly)?,
            loops,
            node: PathBuf::from("/dev").join(NAME),
        })
    }

    /// Makes a disk, makes it again from what was written, and gives it back.
    pub(crate) fn cycle(&self, store: &Path, store_bytes: u64) -> anyhow::Result<[Duration; 3]> {
        let begun = Instant::now();
        File::create_new(store)?.set_len(store_bytes)?;
        let disk = self.assemble(store)?;
        let create = begun.elapsed();
        write(self.node.clone())?;
        self.remove(disk)?;
        let begun = Instant::now();
        let disk = self.assemble(store)?;
        let restore = begun.elapsed();
        let begun = Instant::now();
        self.remove(disk)?;
        Ok([create, restore, begun.elapsed()])
    }

    fn assemble(&self, store: &Path) -> anyhow::Result<Disk> {
        let file = File::options().read(true).write(true).open(store)?;
        let (device, minor) = attach(&self.loops, &file, Access::DirectIo)?;
        let mut created = Message::of(NAME);
        sys::dm(&self.control, Command::Create, &mut created).context("cannot make a device")?;
        let line = format!("7:{} 7:{minor} PO 8", self.image.1);
        let mut table = Message::of(NAME).with_table(self.sectors, "snapshot", &line);
        sys::dm(&self.control, Command::LoadTable, &mut table).context("cannot load a table")?;
        sys::dm(&self.control, Command::Suspend, &mut Message::of(NAME))
            .context("cannot resume a device")?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        mknod(&self.node, SFlag::S_IFBLK, mode, created.device()).context("cannot make a node")?;
        Ok(Disk { _store: device })
    }

    fn remove(&self, disk: Disk) -> anyhow::Result<()> {
        sys::dm(&self.control, Command::Remove, &mut Message::of(NAME))
            .context("cannot remove a device")?;
        fs::remove_file(&self.node)?;
        drop(disk);
        Ok(())
    }
}

fn attach(loops: &File, file: &File, access: Access) -> anyhow::Result<(File, u32)> {
    let minor = sys::free_loop(loops).context("there is no free loop device")?;
    let path = format!("/dev/loop{minor}");
    let device = File::options()
        .read(true)
        .write(access == Access::DirectIo)
        .open(&path)
        .with_context(|| format!("cannot open {path}"))?;
    sys::configure_loop(&device, file, access).with_context(|| format!("cannot set up {path}"))?;
    Ok((device, minor))
}
