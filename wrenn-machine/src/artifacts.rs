//! What the machine boots from: its kernel, its initramfs, its image disk.
//!
//! ```text
//! initramfs   init                 wrenn-machine-init
//!             modules/             in loading order
//!             rootfs/bin/busybox   and its links: becomes the root file system
//!             rootfs/usr/local/bin/wrenn-envd
//! image disk  kernels/ templates/  a root directory, copied to the data disk at boot
//! ```

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use wrenn_images::kernel::{DebianKernel, UnpackedKernel, guest_kernel};
use wrenn_images::rootfs::{self, Filesystem};
use wrenn_images::{BuildError, Cache, Progress, Recipe, cpio, install, strip};

use crate::config::{MachineConfig, Programs};

const KERNEL: DebianKernel = DebianKernel {
    kind: "kernel-machine",
    metapackage: "linux-image-amd64",
    prefix: "linux-image-6",
    modules: &[
        // Disks, network, and what comes from QEMU.
        "virtio_pci",
        "virtio_blk",
        "virtio_net",
        "virtio_rng",
        "qemu_fw_cfg",
        // The power button, which asks for an orderly end.
        "button",
        "evdev",
        // File systems and their checksums. The init waits for `ext4` before it mounts.
        "crc32c_intel",
        "crc32c_generic",
        "xfs",
        "ext4",
        "overlay",
        "loop",
        // Virtual machines; the one of the other maker does not load.
        "kvm_amd",
        "kvm_intel",
        // Disks of sandboxes.
        "dm_mod",
        "dm_snapshot",
        "dm_thin_pool",
        // Networks of sandboxes.
        "tun",
        "veth",
        "af_packet",
        "dummy",
        "nf_tables",
        "nf_conntrack",
        "nf_nat",
        "nft_chain_nat",
        "nft_nat",
        "nft_masq",
        "nft_redir",
        "nft_ct",
        "nft_limit",
        "nft_connlimit",
        "nft_log",
        "nft_reject_inet",
        "nft_reject_ipv4",
        "nft_reject_ipv6",
        "nft_fib_inet",
        "nft_numgen",
        "nft_hash",
        "nft_quota",
        "nft_objref",
        "nf_log_syslog",
        "nf_conntrack_netlink",
    ],
    with_elf: false,
};

const FOLDERS: &[&str] = &[
    "bin",
    "etc",
    "home",
    "lib",
    "root",
    "sbin",
    "usr/bin",
    "usr/local/bin",
    "usr/sbin",
    "var/lib",
    "var/log",
    "var/tmp",
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n\
         user:x:1000:1000:user:/root:/bin/sh\n",
    ),
    (
        "etc/group",
        "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    ),
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost wrenn-machine\n::1\tlocalhost\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    (
        "etc/profile",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n",
    ),
];

/// The files that QEMU is started with.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) images: PathBuf,
}

/// Builds them, or finds them in the cache.
pub(crate) fn build(
    cache: &Cache,
    config: &MachineConfig,
    programs: &Programs,
    progress: &dyn Progress,
) -> Result<Artifacts, BuildError> {
    let kernel = KERNEL.unpack(cache, progress)?;
    let tree = root_tree(cache, progress)?;
    let initramfs = initramfs(cache, &kernel, &tree, programs, progress)?;
    let images = image_disk(cache, config, programs, progress)?;
    Ok(Artifacts {
        kernel: kernel.bzimage(),
        initramfs,
        images,
    })
}

/// A kernel and an initramfs that only say that they run, to try an accelerator with.
pub(crate) fn build_probe(
    cache: &Cache,
    init: &Path,
    progress: &dyn Progress,
) -> Result<(PathBuf, PathBuf), BuildError> {
    let kernel = KERNEL.unpack(cache, progress)?;
    let recipe = Recipe::new("machine-probe", 2)
        .file("init", init)
        .map_err(|source| unreadable(init, source))?;
    let product = cache.product(&recipe, "accelerator probe", progress, |dir| {
        let image = dir.join("initrd.img");
        let mut archive = start_archive(&image, init)?;
        archive
            .directory("modules", 0o755)
            .map_err(|source| unwritable(&image, source))?;
        archive
            .finish()
            .map(drop)
            .map_err(|source| unwritable(&image, source))
    })?;
    Ok((kernel.bzimage(), product.join("initrd.img")))
}

fn root_tree(cache: &Cache, progress: &dyn Progress) -> Result<PathBuf, BuildError> {
    let files = FILES.iter().flat_map(|(name, contents)| [*name, *contents]);
    let recipe = Recipe::new("machine-tree", 1)
        .inputs("folder", FOLDERS.iter().copied())
        .inputs("file", files);
    let product = cache.product(&recipe, "machine's file system", progress, |dir| {
        let tree = dir.join("tree");
        for folder in FOLDERS {
            let path = tree.join(folder);
            fs::create_dir_all(&path).map_err(|source| unwritable(&path, source))?;
        }
        for (name, contents) in FILES {
            let path = tree.join(name);
            fs::write(&path, contents).map_err(|source| unwritable(&path, source))?;
        }
        rootfs::add_busybox(cache, &tree)
    })?;
    Ok(product.join("tree"))
}

fn initramfs(
    cache: &Cache,
    kernel: &UnpackedKernel,
    tree: &Path,
    programs: &Programs,
    progress: &dyn Progress,
) -> Result<PathBuf, BuildError> {
    let file = |recipe: Recipe, name: &str, path: &Path| {
        recipe
            .file(name, path)
            .map_err(|source| unreadable(path, source))
    };
    let recipe = Recipe::new("machine-initramfs", 2)
        .input("kernel", &kernel.bzimage().display().to_string())
        .input("tree", &tree.display().to_string());
    let recipe = file(recipe, "init", &programs.init)?;
    let recipe = file(recipe, "envd", &programs.envd)?;
    let product = cache.product(&recipe, "machine's initramfs", progress, |dir| {
        let image = dir.join("initrd.img");
        let mut archive = start_archive(&image, &programs.init)?;
        kernel.add_modules(&mut archive, &image)?;
        archive
            .directory("rootfs", 0o755)
            .map_err(|source| unwritable(&image, source))?;
        add_tree(&mut archive, tree, "rootfs", &image)?;
        let envd =
            strip::program(&programs.envd).map_err(|source| unreadable(&programs.envd, source))?;
        archive
            .file("rootfs/usr/local/bin/wrenn-envd", 0o755, &envd)
            .and_then(|()| archive.finish().map(drop))
            .map_err(|source| unwritable(&image, source))
    })?;
    Ok(product.join("initrd.img"))
}

type Archive = cpio::Writer<BufWriter<File>>;

/// An initramfs with `/init` and the devices that it needs before it has mounted any.
fn start_archive(image: &Path, init: &Path) -> Result<Archive, BuildError> {
    let program = strip::program(init).map_err(|source| unreadable(init, source))?;
    let start = || {
        let mut archive = cpio::Writer::new(BufWriter::new(File::create(image)?));
        archive.directory("dev", 0o755)?;
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.character_device("dev/kmsg", 0o600, 1, 11)?;
        archive.file("init", 0o755, &program)?;
        Ok(archive)
    };
    start().map_err(|source| unwritable(image, source))
}

fn add_tree(
    archive: &mut Archive,
    tree: &Path,
    inside: &str,
    image: &Path,
) -> Result<(), BuildError> {
    let mut entries: Vec<_> = fs::read_dir(tree)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| unreadable(tree, source))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = format!("{inside}/{}", entry.file_name().display());
        let kind = entry
            .file_type()
            .map_err(|source| unreadable(&path, source))?;
        if kind.is_dir() {
            archive
                .directory(&name, 0o755)
                .map_err(|source| unwritable(image, source))?;
            add_tree(archive, &path, &name, image)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(|source| unreadable(&path, source))?;
            archive
                .symlink(&name, &target.to_string_lossy())
                .map_err(|source| unwritable(image, source))?;
        } else {
            let contents = fs::read(&path).map_err(|source| unreadable(&path, source))?;
            let mode = if inside.ends_with("etc") {
                0o644
            } else {
                0o755
            };
            archive
                .file(&name, mode, &contents)
                .map_err(|source| unwritable(image, source))?;
        }
    }
    Ok(())
}

fn image_disk(
    cache: &Cache,
    config: &MachineConfig,
    programs: &Programs,
    progress: &dyn Progress,
) -> Result<PathBuf, BuildError> {
    let kernel = guest_kernel(cache, &programs.envd, progress)?;
    let images = config
        .templates
        .iter()
        .map(|name| rootfs::build(name, cache, &programs.envd, progress))
        .collect::<Result<Vec<_>, _>>()?;
    let recipe = Recipe::new("machine-images", 2)
        .input("kernel", &kernel.dir.display().to_string())
        .inputs(
            "image",
            images
                .iter()
                .flat_map(|image| [image.name, image.sha256.as_str()]),
        );
    let product = cache.product(&recipe, "machine's image disk", progress, |dir| {
        let tree = dir.join("tree");
        install::stage(&tree, &kernel, &images, install::Files::Linked)?;
        let used = disk_usage(&tree).map_err(|source| unreadable(&tree, source))?;
        let filesystem = Filesystem {
            label: "wrenn-images",
            // Inode tables and the like take a few percent.
            size_mib: (used >> 20) * 11 / 10 + 32,
            journal_mib: None,
        };
        rootfs::make_ext4(&tree, &dir.join("images.ext4"), &filesystem)?;
        fs::remove_dir_all(&tree).map_err(|source| unwritable(&tree, source))
    })?;
    Ok(product.join("images.ext4"))
}

/// Bytes that a tree takes on disk, without the holes of its files.
fn disk_usage(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_usage(&entry.path())?;
        }
    }
    Ok(bytes)
}

fn unreadable(path: &Path, source: std::io::Error) -> BuildError {
    BuildError::File {
        action: "read",
        path: path.to_path_buf(),
        source,
    }
}

fn unwritable(path: &Path, source: std::io::Error) -> BuildError {
    BuildError::file("write", path, source)
}
