//! Templates from elsewhere: root file system archives, ext4 images, container images.
//!
//! ```text
//!  docker save, OCI layout ─▶ image/ ─ layers ─┐
//!  tar, tar.gz, tar.zst ─────── entries ───────┴▶ tree/ ─ user, daemon ─ mke2fs ─▶ rootfs.ext4
//!  ext4 image ─ copy ─────────────────────────────────── user, daemon ─ debugfs ─▶ rootfs.ext4
//!
//!  rootfs.ext4 ─ SHA-256 ─▶ <root>/templates/<name>/{template.json, <SHA-256>.ext4}
//! ```
//!
//! What is imported is hostile until it lies in a guest. Names go through `tree`, which the
//! kernel keeps inside of the staging directory; sizes and counts through `limits`; every
//! digest and size that an image states is checked.
//!
//! An image is never changed: to import under a name that there is already adds a file and
//! points `template.json` to it in one step. The old one stays for whoever uses it.

mod accounts;
mod compression;
mod defaults;
mod error;
mod filesystem;
mod layer;
mod limits;
mod oci;
mod prepare;
mod publish;
mod source;
mod staging;
mod tarball;
mod tree;

#[cfg(test)]
mod hostile_tests;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use compression::{Hashing, unpacked};
use defaults::Defaults;
use layer::{Whiteouts, unpack};
use limits::{Budget, Metered};
use oci::ImageDirectory;
use staging::Staging;
use tree::Tree;

use crate::error::AtPath as _;
use crate::install::{TemplateDescription, TemplateKind, image_name};

pub use error::ImportError;
pub use limits::{LimitError, Limits};
pub use oci::ImageError;
pub use source::{SourceKind, detect};
pub use tarball::{ArchiveError, Problem};

/// What to import, and how.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The name that the template gets.
    pub name: String,
    /// What it is made from.
    pub source: PathBuf,
    /// The guest daemon, a program for the guest.
    pub envd: PathBuf,
    /// Id of the kernel; the one that was installed last unless set, but for those that are
    /// used on request only.
    pub kernel: Option<String>,
    /// Size of the disk; as much as is in it and a GiB more unless set.
    pub size_mib: Option<u64>,
    /// Who runs commands; whom the source names unless set, else `user`.
    pub default_user: Option<String>,
    /// Environment of every command, on top of the source's.
    pub env: BTreeMap<String, String>,
    /// What is started after boot; what the source names unless set.
    pub start_command: Option<String>,
    /// How much the source may unpack to.
    pub limits: Limits,
}

impl ImportOptions {
    /// The template `name` from `source`, with all else at its default.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        source: impl Into<PathBuf>,
        envd: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            source: source.into(),
            envd: envd.into(),
            kernel: None,
            size_mib: None,
            default_user: None,
            env: BTreeMap::new(),
            start_command: None,
            limits: Limits::default(),
        }
    }
}

/// A template that was imported.
#[derive(Debug, Clone)]
pub struct Imported {
    /// What `template.json` says.
    pub description: TemplateDescription,
    /// What it was made from.
    pub kind: SourceKind,
    /// Where the root file system lies.
    pub rootfs: PathBuf,
    /// What of the source was not taken, and why.
    pub remarks: Vec<String>,
}

/// What an import is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the source into the staging directory.
    Unpacking,
    /// Making the file system.
    MakingFilesystem,
    /// Computing the name of what was made, and putting it in its place.
    Finishing,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// The step.
    pub phase: Phase,
    /// Bytes of the step that are done.
    pub done: u64,
    /// How many there are, where that is known.
    pub total: Option<u64>,
}

/// Receives updates. Called from the importing thread, often, so it should be quick.
pub type OnUpdate<'a> = &'a dyn Fn(Update);

/// Imports a template into the root directory `root`. Blocks the thread for as long as it
/// takes, which may be minutes.
///
/// # Errors
/// The source is not what it should be, or the disk is full. Nothing is left then, and a
/// template of this name is as it was.
pub fn import(
    root: &Path,
    options: &ImportOptions,
    on_update: OnUpdate<'_>,
) -> Result<Imported, ImportError> {
    publish::check_name(&options.name)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(ImportError::NeedsRoot);
    }
    let kernel = publish::kernel(root, options.kernel.as_deref())?;
    prepare::check_daemon(&options.envd)?;
    let kind = detect(&options.source)?;
    let result = Staging::begin(root)
        .map_err(Into::into)
        .and_then(|staging| {
            let work = Work {
                staging: &staging,
                options,
                budget: Budget::new(options.limits),
                on_update,
            };
            work.run(root, kind, kernel)
        });
    result.map_err(|error| {
        if error.is_full_disk() {
            ImportError::DiskFull {
                directory: root.to_owned(),
            }
        } else {
            error
        }
    })
}

struct Work<'a> {
    staging: &'a Staging,
    options: &'a ImportOptions,
    budget: Budget,
    on_update: OnUpdate<'a>,
}

impl Work<'_> {
    fn run(&self, root: &Path, kind: SourceKind, kernel: String) -> Result<Imported, ImportError> {
        let image = self.staging.path("rootfs.ext4");
        let (defaults, accounts) = if kind == SourceKind::Ext4 {
            filesystem::adopt(&self.options.source, &image, self.options.size_mib)?;
            self.update(Phase::MakingFilesystem, 0, None);
            (
                Defaults::default(),
                prepare::image(&image, &self.options.envd)?,
            )
        } else {
            let path = self.staging.make_directory("tree")?;
            let tree = Tree::open(&path).at("open", &path)?;
            let defaults = self.fill(&tree, kind)?;
            let accounts = prepare::tree(&tree, &self.options.envd)?;
            self.update(Phase::MakingFilesystem, 0, None);
            filesystem::make(&path, &image, self.options.size_mib)?;
            (defaults, accounts)
        };

        let mut remarks = Vec::new();
        let default_user = match (&self.options.default_user, &defaults.user) {
            (Some(asked), _) => {
                accounts
                    .user_named(asked)
                    .ok_or_else(|| ImportError::UnknownUser {
                        name: asked.clone(),
                    })?
            }
            (None, Some(named)) => accounts.user_named(named).unwrap_or_else(|| {
                remarks.push(format!(
                    "the image wants the user {named}, who is not in its /etc/passwd; \
                     commands run as {}",
                    accounts::USER
                ));
                accounts::USER.to_owned()
            }),
            (None, None) => accounts::USER.to_owned(),
        };
        let mut env = defaults.env;
        env.extend(self.options.env.clone());

        let length = image.metadata().at("look at", &image)?.len();
        let sha256 = self.digest_of(&image, length)?;
        let description = TemplateDescription {
            version: 1,
            name: self.options.name.clone(),
            kind: TemplateKind::Image,
            kernel,
            rootfs: image_name(&sha256),
            rootfs_sha256: sha256,
            size_mib: length >> 20,
            default_user,
            env,
            start_command: self
                .options
                .start_command
                .clone()
                .or(defaults.start_command),
            working_directory: defaults.working_directory,
        };
        let rootfs = publish::put_in_place(root, self.staging, &image, &description)?;
        Ok(Imported {
            description,
            kind,
            rootfs,
            remarks,
        })
    }

    /// Fills the tree from an archive or a container image.
    fn fill(&self, tree: &Tree, kind: SourceKind) -> Result<Defaults, ImportError> {
        let source = &self.options.source;
        if kind == SourceKind::Tarball {
            self.unpack_file(tree, Whiteouts::Plain)?;
            return Ok(Defaults::default());
        }
        let directory = if kind == SourceKind::ImageArchive {
            let path = self.staging.make_directory("image")?;
            let unpacked = Tree::open(&path).at("open", &path)?;
            self.unpack_file(&unpacked, Whiteouts::Plain)?;
            path
        } else {
            source.clone()
        };
        let directory = ImageDirectory::open(&directory).at("open", &directory)?;
        let failed = |source_error| ImportError::Image {
            path: source.clone(),
            source: source_error,
        };
        let image = directory.image().map_err(failed)?;
        for (index, layer) in image.layers.iter().enumerate() {
            let file = directory.file(&layer.file).map_err(failed)?;
            let packed = self.counted(file);
            self.apply(tree, layer, packed, index + 1)?;
        }
        Ok(Defaults::of(image.config.as_ref()))
    }

    /// Unpacks the source, an archive, into `tree`.
    fn unpack_file(&self, tree: &Tree, whiteouts: Whiteouts) -> Result<(), ImportError> {
        let source = &self.options.source;
        let file = File::open(source).at("open", source)?;
        let reader = unpacked(self.counted(file)).at("read", source)?;
        unpack(
            tree,
            Metered::new(reader, &self.budget),
            whiteouts,
            &self.budget,
        )
        .map_err(|error| ImportError::Archive {
            path: source.clone(),
            source: error,
        })
    }

    /// Puts one layer over those that are in `tree`, and checks that it was the right one.
    fn apply(
        &self,
        tree: &Tree,
        layer: &oci::Layer,
        file: impl Read,
        number: usize,
    ) -> Result<(), ImportError> {
        let source = &self.options.source;
        let broken = |error| ImportError::Layer {
            number,
            path: source.clone(),
            source: error,
        };
        let mut packed = Hashing::new(file);
        let reader = unpacked(&mut packed).map_err(|error| broken(tarball::read_error(error)))?;
        let mut archive = Hashing::new(Metered::new(reader, &self.budget));
        unpack(tree, &mut archive, Whiteouts::Meant, &self.budget).map_err(broken)?;
        let got = archive.result();
        drop(archive);
        // What stands behind the end of the packed stream counts for its digest.
        io::copy(&mut packed, &mut io::sink())
            .map_err(|error| broken(tarball::read_error(error)))?;
        let checked = match &layer.packed {
            Some((digest, size)) => oci::check(&layer.file, &packed.result(), digest, Some(*size)),
            None => Ok(()),
        };
        checked
            .and_then(|()| oci::check(&layer.file, &got, &layer.diff_id, None))
            .map_err(|source_error| ImportError::Image {
                path: source.clone(),
                source: source_error,
            })
    }

    fn digest_of(&self, image: &Path, length: u64) -> Result<String, ImportError> {
        let file = File::open(image).at("open", image)?;
        let mut reader = Hashing::new(Counted {
            inner: file,
            done: Cell::new(0),
            report: |done| self.update(Phase::Finishing, done, Some(length)),
        });
        let mut buffer = vec![0; 1 << 20];
        while reader.read(&mut buffer).at("read", image)? > 0 {}
        Ok(reader.result().0)
    }

    /// Reports how much of a file was read.
    fn counted(&self, file: File) -> Counted<File, impl Fn(u64)> {
        let total = file.metadata().ok().map(|metadata| metadata.len());
        Counted {
            inner: file,
            done: Cell::new(0),
            report: move |done| self.update(Phase::Unpacking, done, total),
        }
    }

    fn update(&self, phase: Phase, done: u64, total: Option<u64>) {
        (self.on_update)(Update { phase, done, total });
    }
}

/// Tells how much was read through it.
struct Counted<R, F> {
    inner: R,
    done: Cell<u64>,
    report: F,
}

impl<R: Read, F: Fn(u64)> Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done.set(self.done.get() + count as u64);
        (self.report)(self.done.get());
        Ok(count)
    }
}
