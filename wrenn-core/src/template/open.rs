//! Opening a template: every file that a sandbox needs, checked to be there.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::list::kernels;
use super::manifest::{KernelManifest, MANIFEST_VERSION, TemplateManifest};
use super::{DESCRIPTION, KERNEL_DESCRIPTION, directory_of, is_name, names};
use crate::RootDirectory;

/// A template with its kernel, every file checked to be there.
#[derive(Clone, Debug)]
pub struct Template {
    /// The manifest as read.
    pub manifest: TemplateManifest,
    /// The root file system.
    pub rootfs: PathBuf,
    /// The uncompressed kernel, which every VMM loads and which no guest has to unpack.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: Option<PathBuf>,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenTemplateError {
    /// Its name holds something that a name may not hold.
    #[error("'{0}' is no template name: one is made of up to 128 of a-z, 0-9, '.', '_' and '-'")]
    Name(String),
    /// Nothing of that name is there.
    #[error("there is no template '{name}' in {directory}; there {}", known(.present))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// The names that are there.
        present: Vec<String>,
    },
    /// There is no kernel of this id.
    #[error("there is no kernel '{id}' in {directory}; there {}", known(.present))]
    UnknownKernel {
        /// The id asked for.
        id: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// The ids that are there.
        present: Vec<String>,
    },
    /// A manifest cannot be read.
    #[error("cannot read {path}; build the template again")]
    Read {
        /// The manifest.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A manifest makes no sense.
    #[error("{path} is damaged; build the template again")]
    Parse {
        /// The manifest.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest was written by a later version of this program.
    #[error("{path} has layout {found}, this program knows {MANIFEST_VERSION}; use a newer wrenn")]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The layout that it names.
        found: u32,
    },
    /// A file that a manifest names is not there.
    #[error("template '{name}' needs {path}, which is missing; build the template again")]
    MissingFile {
        /// The template.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// The root file system is not what the manifest describes.
    #[error("{path} holds no ext4 file system of {size_mib} MiB; build the template again")]
    CorruptRootfs {
        /// The file.
        path: PathBuf,
        /// The size it should have.
        size_mib: u64,
    },
}

fn known(present: &[String]) -> String {
    if present.is_empty() {
        "is none at all: build the images first".to_owned()
    } else {
        format!("are: {}", present.join(", "))
    }
}

impl Template {
    /// Whether there is a template `name` in a root directory.
    #[must_use]
    pub fn exists(root: &RootDirectory, name: &str) -> bool {
        is_name(name) && directory_of(root, name).join(DESCRIPTION).exists()
    }

    /// Opens the template `name` of a root directory.
    ///
    /// # Errors
    /// When it is unknown, damaged, or lacks a file; the message says what to do.
    pub fn open(root: &RootDirectory, name: &str) -> Result<Self, OpenTemplateError> {
        if !is_name(name) {
            return Err(OpenTemplateError::Name(name.to_owned()));
        }
        let directory = directory_of(root, name);
        let path = directory.join(DESCRIPTION);
        if !path.exists() {
            return Err(OpenTemplateError::Unknown {
                name: name.to_owned(),
                directory: root.templates(),
                present: names(root),
            });
        }
        let manifest = read_template(&path)?;

        let (kernel, initrd) = kernel_of(root, name, &manifest.kernel)?;
        let template = Self {
            rootfs: directory.join(&manifest.rootfs),
            kernel,
            initrd,
            manifest,
        };
        present(name, &template.rootfs)?;
        template.check_rootfs()?;
        Ok(template)
    }

    /// The template with the kernel of this id in place of its own.
    ///
    /// # Errors
    /// When there is none, or it is damaged; the message says what to do.
    pub fn with_kernel(self, root: &RootDirectory, id: &str) -> Result<Self, OpenTemplateError> {
        let known = kernels(root);
        if !known.iter().any(|known| known == id) {
            return Err(OpenTemplateError::UnknownKernel {
                id: id.to_owned(),
                directory: root.kernels(),
                present: known,
            });
        }
        let (kernel, initrd) = kernel_of(root, &self.manifest.name, id)?;
        Ok(Self {
            kernel,
            initrd,
            ..self
        })
    }

    /// A cheap look that catches a truncated or foreign file; the checksum is verified
    /// when a template is installed, not at every start.
    fn check_rootfs(&self) -> Result<(), OpenTemplateError> {
        use std::os::unix::fs::FileExt;

        /// The ext4 magic number lies in the superblock at 1,024 bytes, 56 bytes in.
        const MAGIC_OFFSET: u64 = 1024 + 56;
        const MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();

        let mut magic = [0; 2];
        let sound = std::fs::File::open(&self.rootfs).is_ok_and(|file| {
            file.read_exact_at(&mut magic, MAGIC_OFFSET).is_ok()
                && magic == MAGIC
                && file
                    .metadata()
                    .is_ok_and(|meta| meta.len() == self.manifest.size_mib << 20)
        });
        if sound {
            Ok(())
        } else {
            Err(OpenTemplateError::CorruptRootfs {
                path: self.rootfs.clone(),
                size_mib: self.manifest.size_mib,
            })
        }
    }
}

/// The files of the kernel `id`, with which the template `name` is to boot.
fn kernel_of(
    root: &RootDirectory,
    name: &str,
    id: &str,
) -> Result<(PathBuf, Option<PathBuf>), OpenTemplateError> {
    let directory = root.kernels().join(id);
    let path = directory.join(KERNEL_DESCRIPTION);
    present(name, &path)?;
    let manifest: KernelManifest = read_manifest(&path)?;
    check_version(&path, manifest.version)?;
    let kernel = directory.join(&manifest.elf);
    present(name, &kernel)?;
    let initrd = manifest.initrd.map(|file| directory.join(file));
    if let Some(initrd) = &initrd {
        present(name, initrd)?;
    }
    Ok((kernel, initrd))
}

/// Reads a `template.json`.
pub(super) fn read_template(path: &Path) -> Result<TemplateManifest, OpenTemplateError> {
    let manifest: TemplateManifest = read_manifest(path)?;
    check_version(path, manifest.version)?;
    Ok(manifest)
}

fn read_manifest<T: DeserializeOwned>(path: &Path) -> Result<T, OpenTemplateError> {
    let text = std::fs::read(path).map_err(|source| OpenTemplateError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| OpenTemplateError::Parse {
        path: path.to_owned(),
        source,
    })
}

fn check_version(path: &Path, found: u32) -> Result<(), OpenTemplateError> {
    if found == MANIFEST_VERSION {
        Ok(())
    } else {
        Err(OpenTemplateError::Version {
            path: path.to_owned(),
            found,
        })
    }
}

fn present(name: &str, path: &Path) -> Result<(), OpenTemplateError> {
    if path.exists() {
        Ok(())
    } else {
        Err(OpenTemplateError::MissingFile {
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root_with_template() -> (tempfile::TempDir, RootDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        let kernel = root.kernels().join("k1");
        let template = root.templates().join("tiny");
        fs::create_dir_all(&kernel).unwrap();
        fs::create_dir_all(&template).unwrap();
        fs::write(kernel.join("vmlinux"), "elf").unwrap();
        fs::write(
            kernel.join("kernel.json"),
            r#"{"version":1,"id":"k1","bzimage":"vmlinuz","elf":"vmlinux","initrd":null}"#,
        )
        .unwrap();
        fs::write(
            template.join("template.json"),
            r#"{"version":1,"name":"tiny","kind":"image","kernel":"k1","rootfs":"rootfs.ext4",
                "rootfs_sha256":"00","size_mib":1,"default_user":"user"}"#,
        )
        .unwrap();
        let mut image = vec![0_u8; 1 << 20];
        image[1080] = 0x53;
        image[1081] = 0xEF;
        fs::write(template.join("rootfs.ext4"), image).unwrap();
        (directory, root)
    }

    #[test]
    fn opens_what_is_whole() {
        let (_directory, root) = root_with_template();
        let template = Template::open(&root, "tiny").unwrap();
        assert!(template.kernel.ends_with("kernels/k1/vmlinux"));
        assert_eq!(template.manifest.default_user, "user");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let (_directory, root) = root_with_template();
        let message = Template::open(&root, "huge").unwrap_err().to_string();
        assert!(message.contains("are: tiny"), "{message}");
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let (_directory, root) = root_with_template();
        for name in ["../tiny", "", ".", "..", "a/b", "Tiny"] {
            assert!(
                matches!(Template::open(&root, name), Err(OpenTemplateError::Name(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn another_kernel_takes_the_place_of_its_own() {
        let (_directory, root) = root_with_template();
        let other = root.kernels().join("k2");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("vmlinux"), "elf").unwrap();
        fs::write(other.join("initrd.img"), "cpio").unwrap();
        fs::write(
            other.join("kernel.json"),
            r#"{"version":1,"id":"k2","bzimage":"vmlinuz","elf":"vmlinux","initrd":"initrd.img",
                "on_request":true}"#,
        )
        .unwrap();
        let open = || Template::open(&root, "tiny").unwrap();
        let template = open().with_kernel(&root, "k2").unwrap();
        assert!(template.kernel.ends_with("kernels/k2/vmlinux"));
        assert!(template.initrd.unwrap().ends_with("kernels/k2/initrd.img"));

        for id in ["k3", "../kernels/k2", ""] {
            let error = open().with_kernel(&root, id).unwrap_err();
            assert!(error.to_string().contains("are: k1, k2"), "{error}");
        }
    }

    #[test]
    fn a_missing_kernel_and_a_corrupt_image_are_named() {
        let (_directory, root) = root_with_template();
        let image = root.templates().join("tiny/rootfs.ext4");
        fs::write(&image, "short").unwrap();
        let error = Template::open(&root, "tiny").unwrap_err();
        assert!(
            matches!(error, OpenTemplateError::CorruptRootfs { .. }),
            "{error}"
        );

        fs::remove_file(root.kernels().join("k1/vmlinux")).unwrap();
        let error = Template::open(&root, "tiny").unwrap_err();
        assert!(
            matches!(error, OpenTemplateError::MissingFile { .. }),
            "{error}"
        );
    }
}
