//! A root directory with a kernel in it, sources beside it, and eyes into what is made.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wrenn_images::command::Program;
use wrenn_images::import::{self, ImportError, ImportOptions, Imported};

pub(crate) struct Scene(tempfile::TempDir);

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        scene.lay_kernel();
        let envd = scene.path("envd");
        fs::write(&envd, "the daemon").unwrap();
        fs::set_permissions(&envd, fs::Permissions::from_mode(0o755)).unwrap();
        scene
    }

    fn lay_kernel(&self) {
        let kernel = self.root().join("kernels/k1");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(kernel.join("kernel.json"), "{}").unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub(crate) fn source(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// An ext4 image without our user or daemon, but with a user of number 1000.
    pub(crate) fn ext4_source(&self, size_mib: u64) -> PathBuf {
        let tree = self.path("ext4-tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::create_dir(tree.join("tmp")).unwrap();
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(tree.join("etc/hello"), "world").unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nubuntu:x:1000:1000::/srv/ubuntu:/bin/sh\n";
        fs::write(tree.join("etc/passwd"), passwd).unwrap();
        fs::write(tree.join("etc/group"), "root:x:0:\n").unwrap();
        let image = self.path("source.ext4");
        fs::File::create(&image)
            .unwrap()
            .set_len(size_mib << 20)
            .unwrap();
        Program::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([&tree, &image])
            .run()
            .unwrap();
        image
    }

    pub(crate) fn options(&self, name: &str, source: &Path) -> ImportOptions {
        let is_ext4 = source.extension().is_some_and(|ending| ending == "ext4");
        ImportOptions {
            // Small, so that hashing it does not take long.
            size_mib: (!is_ext4).then_some(64),
            ..ImportOptions::new(name, source, self.path("envd"))
        }
    }

    pub(crate) fn import(&self, name: &str, source: &Path) -> Result<Imported, ImportError> {
        self.import_with(&self.options(name, source))
    }

    pub(crate) fn import_with(&self, options: &ImportOptions) -> Result<Imported, ImportError> {
        import::import(&self.root(), options, &|_| {})
    }

    pub(crate) fn manifest(&self, name: &str) -> serde_json::Value {
        let path = self
            .root()
            .join("templates")
            .join(name)
            .join("template.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    pub(crate) fn image(&self, name: &str) -> Image {
        let file = self.manifest(name)["rootfs"].as_str().unwrap().to_owned();
        Image {
            path: self.root().join("templates").join(name).join(file),
        }
    }

    pub(crate) fn assert_nothing_left(&self) {
        let imports = self.root().join("imports");
        let left: Vec<_> = fs::read_dir(imports)
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Runs `test` with a root directory of 16 MiB, which only its thread sees.
    pub(crate) fn on_small_disk<T: Send>(&self, test: impl FnOnce(&Self) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                let (kind, size) = (Some("tmpfs"), Some("size=16m"));
                mount(kind, &self.root(), kind, MsFlags::empty(), size).unwrap();
                self.lay_kernel();
                test(self)
            });
            thread.join().unwrap()
        })
    }
}

/// An image that was made, looked into without mounting it.
pub(crate) struct Image {
    pub(crate) path: PathBuf,
}

impl Image {
    fn ask(&self, question: &str) -> String {
        let answer = Program::new("debugfs")
            .args(["-R", question])
            .arg(&self.path)
            .run()
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        self.ask(&format!("cat {path}"))
    }

    pub(crate) fn stat(&self, path: &str) -> String {
        self.ask(&format!("stat {path}"))
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.stat(path).contains("Inode:")
    }

    /// Lets e2fsck look at it.
    pub(crate) fn check(&self) {
        Program::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&self.path)
            .run()
            .unwrap();
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        let header = self.ask("show_super_stats -h");
        let number = |label: &str| {
            let line = header.lines().find(|line| line.starts_with(label)).unwrap();
            line.split_whitespace()
                .last()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        number("Free blocks:") * number("Block size:")
    }
}
