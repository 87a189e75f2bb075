//! Container images on disk: what an OCI image layout or a `docker save` archive holds.
//!
//! ```text
//!  OCI layout      index.json ─▶ (index ─▶)… manifest ─┬▶ config ─▶ diff ids
//!                                                      └▶ layers, by digest and size
//!  docker save     manifest.json ─┬▶ <id>.json: config ─▶ diff ids
//!  before 25.0                    └▶ <id>/layer.tar, …
//! ```
//!
//! Both are directories here: an archive is unpacked before. Every file is opened inside of
//! that directory, whatever its name or a link says, and what has a digest is checked
//! against it.
//!
//! Source: OCI Image Format Specification 1.1, "Image Layout", "Image Index", "Image
//! Manifest", "Image Configuration"; Docker Image Specification 1.2, "Combined Image JSON".

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use oci_spec::image::{
    Arch, Config, Descriptor, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest,
    MediaType, Os,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::tree::{EntryPath, Tree};
use crate::recipe::hex;

/// The longest description that is read; real ones have a few kilobytes.
const LONGEST_JSON: u64 = 4 << 20;
/// How many indices may lie within each other, and how many images an index may offer.
const DEEPEST_INDEX: usize = 4;
const MOST_MANIFESTS: usize = 1000;
/// More layers than any builder makes.
const MOST_LAYERS: usize = 1000;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("it has no {file}; fetch or save the image again")]
    Missing {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("{file} of it is longer than {LONGEST_JSON} bytes")]
    TooLong { file: String },
    #[error("{file} of it makes no sense; fetch or save the image again")]
    Parse {
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{file} of it is damaged: it has {got}, and should have {want}")]
    Corrupt {
        file: String,
        got: String,
        want: String,
    },
    #[error("{digest:?} in it is no SHA-256 digest, and this program knows no other")]
    Digest { digest: String },
    #[error("it has nothing for linux/amd64, only for: {}", present.join(", "))]
    NoPlatform { present: Vec<String> },
    #[error("it holds several images: {}; save one of them alone", names.join(", "))]
    Several { names: Vec<String> },
    #[error("it holds no image")]
    Empty,
    #[error("its index names too many images, or lies too deep in others")]
    TooManyManifests,
    #[error("it describes {described} layers and holds {held}")]
    LayerCount { described: usize, held: usize },
    #[error("{file} in it is no name inside of it")]
    Name { file: String },
}

/// One layer, still packed.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) file: String,
    /// SHA-256 and length of the file, where the image tells.
    pub(super) packed: Option<(String, u64)>,
    /// SHA-256 of the archive in it.
    pub(super) diff_id: String,
}

/// An image that was looked through.
#[derive(Debug)]
pub(super) struct Image {
    /// How processes start, if it tells.
    pub(super) config: Option<Config>,
    pub(super) layers: Vec<Layer>,
}

/// A directory that holds an image.
#[derive(Debug)]
pub(super) struct ImageDirectory(Tree);

/// `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageDirectory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Tree::open(path).map(Self)
    }

    /// Whether `path` looks like one.
    pub(super) fn is_one(path: &Path) -> bool {
        path.join("index.json").is_file() || path.join("manifest.json").is_file()
    }

    /// Opens a file of it.
    pub(super) fn file(&self, name: &str) -> Result<File, ImageError> {
        let path = EntryPath::new(name.as_bytes()).map_err(|_| ImageError::Name {
            file: name.to_owned(),
        })?;
        self.0
            .open_file(&path)
            .map_err(|source| ImageError::Missing {
                file: name.to_owned(),
                source,
            })
    }

    /// Finds the image for our guests in it.
    pub(super) fn image(&self) -> Result<Image, ImageError> {
        if self.has("index.json") {
            self.image_of_index()
        } else {
            self.image_of_docker()
        }
    }

    fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    fn image_of_index(&self) -> Result<Image, ImageError> {
        let index: ImageIndex = parse("index.json", &self.read("index.json", None)?)?;
        let mut search = Search::default();
        self.search(&index, 0, None, &mut search)?;
        let mut found = search.found;
        found.sort_by(|one, two| one.digest.cmp(&two.digest));
        found.dedup_by(|one, two| one.digest == two.digest);
        if found.len() > 1 {
            return Err(ImageError::Several {
                names: found.into_iter().map(|found| found.name).collect(),
            });
        }
        let Some(found) = found.pop() else {
            return Err(if search.others.is_empty() {
                ImageError::Empty
            } else {
                ImageError::NoPlatform {
                    present: search.others.into_iter().collect(),
                }
            });
        };
        let layers = found
            .manifest
            .layers()
            .iter()
            .map(|layer| {
                let digest = sha256(layer)?;
                Ok((blob(&digest), Some((digest, layer.size()))))
            })
            .collect::<Result<Vec<_>, ImageError>>()?;
        assemble(&found.config, layers)
    }

    /// Looks for images for our guests in `index` and what it leads to.
    fn search(
        &self,
        index: &ImageIndex,
        depth: usize,
        outer_name: Option<&str>,
        search: &mut Search,
    ) -> Result<(), ImageError> {
        for descriptor in index.manifests() {
            search.looked_at += 1;
            if depth >= DEEPEST_INDEX || search.looked_at > MOST_MANIFESTS {
                return Err(ImageError::TooManyManifests);
            }
            let platform = descriptor.platform().as_ref();
            if let Some(platform) = platform
                && !fits(platform.os(), platform.architecture())
            {
                search.other(platform.os(), platform.architecture());
                continue;
            }
            let digest = sha256(descriptor)?;
            let name = name_of(descriptor).or(outer_name.map(str::to_owned));
            if is_index(descriptor.media_type()) {
                let inner = parse(&blob(&digest), &self.blob(descriptor)?)?;
                self.search(&inner, depth + 1, name.as_deref(), search)?;
                continue;
            }
            let manifest: ImageManifest = parse(&blob(&digest), &self.blob(descriptor)?)?;
            if !is_config(manifest.config().media_type()) {
                // A signature or a description of an image, and none itself.
                continue;
            }
            let config = sha256(manifest.config())?;
            let config: ImageConfiguration = parse(&blob(&config), &self.blob(manifest.config())?)?;
            if fits(config.os(), config.architecture()) {
                search.found.push(Found {
                    name: name.unwrap_or_else(|| digest.clone()),
                    digest,
                    manifest,
                    config,
                });
            } else {
                search.other(config.os(), config.architecture());
            }
        }
        Ok(())
    }

    fn image_of_docker(&self) -> Result<Image, ImageError> {
        let file = "manifest.json";
        let mut manifests: Vec<DockerManifest> = parse(file, &self.read(file, None)?)?;
        if manifests.len() > 1 {
            return Err(ImageError::Several {
                names: manifests
                    .into_iter()
                    .flat_map(|manifest| manifest.repo_tags.unwrap_or(vec![manifest.config]))
                    .collect(),
            });
        }
        let manifest = manifests.pop().ok_or(ImageError::Empty)?;
        // The configuration's name is its digest, and vouches for the layers.
        let stem = Path::new(&manifest.config).file_stem();
        let digest = stem.and_then(|stem| stem.to_str()).filter(|s| is_hex(s));
        let digest = digest.ok_or_else(|| ImageError::Digest {
            digest: manifest.config.clone(),
        })?;
        let text = self.read(&manifest.config, Some((digest, None)))?;
        let config: ImageConfiguration = parse(&manifest.config, &text)?;
        if !fits(config.os(), config.architecture()) {
            return Err(ImageError::NoPlatform {
                present: vec![format!("{}/{}", config.os(), config.architecture())],
            });
        }
        let layers = manifest.layers.into_iter().map(|file| (file, None));
        assemble(&config, layers.collect())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = sha256(descriptor)?;
        self.read(&blob(&digest), Some((&digest, Some(descriptor.size()))))
    }

    /// Reads a description whole, checked against digest and size where they are known.
    fn read(
        &self,
        name: &str,
        expected: Option<(&str, Option<u64>)>,
    ) -> Result<Vec<u8>, ImageError> {
        let mut text = Vec::new();
        self.file(name)?
            .take(LONGEST_JSON + 1)
            .read_to_end(&mut text)
            .map_err(|source| ImageError::Missing {
                file: name.to_owned(),
                source,
            })?;
        if text.len() as u64 > LONGEST_JSON {
            return Err(ImageError::TooLong {
                file: name.to_owned(),
            });
        }
        if let Some((digest, size)) = expected {
            let got = (hex(&Sha256::digest(&text)), text.len() as u64);
            check(name, &got, digest, size)?;
        }
        Ok(text)
    }
}

/// What was found on the way through an index.
#[derive(Default)]
struct Search {
    looked_at: usize,
    found: Vec<Found>,
    others: BTreeSet<String>,
}

struct Found {
    name: String,
    digest: String,
    manifest: ImageManifest,
    config: ImageConfiguration,
}

impl Search {
    fn other(&mut self, os: &Os, architecture: &Arch) {
        self.others.insert(format!("{os}/{architecture}"));
    }
}

/// Compares digest and length of a file with what they should be.
pub(super) fn check(
    file: &str,
    got: &(String, u64),
    digest: &str,
    size: Option<u64>,
) -> Result<(), ImageError> {
    let corrupt = |got: String, want: String| {
        Err(ImageError::Corrupt {
            file: file.to_owned(),
            got,
            want,
        })
    };
    match size {
        Some(size) if size != got.1 => corrupt(format!("{} bytes", got.1), format!("{size} bytes")),
        _ if digest != got.0 => corrupt(format!("sha256:{}", got.0), format!("sha256:{digest}")),
        _ => Ok(()),
    }
}

type PackedLayer = (String, Option<(String, u64)>);

fn assemble(config: &ImageConfiguration, layers: Vec<PackedLayer>) -> Result<Image, ImageError> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers.len() || layers.len() > MOST_LAYERS {
        return Err(ImageError::LayerCount {
            described: diff_ids.len(),
            held: layers.len(),
        });
    }
    let layers = layers
        .into_iter()
        .zip(diff_ids)
        .map(|((file, packed), diff_id)| {
            let digest = diff_id.strip_prefix("sha256:").filter(|hex| is_hex(hex));
            Ok(Layer {
                file,
                packed,
                diff_id: digest
                    .ok_or_else(|| ImageError::Digest {
                        digest: diff_id.clone(),
                    })?
                    .to_owned(),
            })
        })
        .collect::<Result<_, ImageError>>()?;
    Ok(Image {
        config: config.config().clone(),
        layers,
    })
}

fn parse<T: DeserializeOwned>(file: &str, text: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(text).map_err(|source| ImageError::Parse {
        file: file.to_owned(),
        source,
    })
}

fn sha256(descriptor: &Descriptor) -> Result<String, ImageError> {
    let digest = descriptor.digest();
    if *digest.algorithm() == DigestAlgorithm::Sha256 && is_hex(digest.digest()) {
        Ok(digest.digest().to_owned())
    } else {
        Err(ImageError::Digest {
            digest: digest.to_string(),
        })
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn fits(os: &Os, architecture: &Arch) -> bool {
    *os == Os::Linux && *architecture == Arch::Amd64
}

fn is_index(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageIndex => true,
        MediaType::Other(name) => name.ends_with("manifest.list.v2+json"),
        _ => false,
    }
}

fn is_config(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageConfig => true,
        MediaType::Other(name) => name == "application/vnd.docker.container.image.v1+json",
        _ => false,
    }
}

fn name_of(descriptor: &Descriptor) -> Option<String> {
    let annotations = descriptor.annotations().as_ref()?;
    [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ]
    .iter()
    .find_map(|key| annotations.get(*key).cloned())
}

/// Whether an archive whose first entry has this name holds an image, and not a root file
/// system: packers write only such names, in an order of their own.
pub(super) fn starts_an_image(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    let name = name.strip_prefix("./").unwrap_or(&name);
    let first = name.split('/').next().unwrap_or(name);
    matches!(
        first,
        "blobs" | "index.json" | "manifest.json" | "oci-layout" | "repositories"
    ) || is_hex(
        Path::new(first)
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_names_tell_images_from_root_file_systems() {
        let id = "0123456789abcdef".repeat(4);
        for name in [
            "blobs/",
            "./oci-layout",
            "index.json",
            "manifest.json",
            "repositories",
            &id,
            &format!("{id}/"),
            &format!("{id}.json"),
            &format!("{id}.tar"),
            &format!("{id}/layer.tar"),
        ] {
            assert!(starts_an_image(name.as_bytes()), "{name}");
        }
        for name in [
            "bin/",
            "./etc/passwd",
            "usr/share/blobs",
            &id[1..],
            "manifest.json5",
        ] {
            assert!(!starts_an_image(name.as_bytes()), "{name}");
        }
    }
}
