//! Archives and container images, as the tests write them.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// An archive in the making, by a library that is not under test.
pub(crate) struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(1_600_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    pub(crate) fn directory(mut self, name: &str) -> Self {
        let mut header = Self::header(EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, name, &b""[..]).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, contents: &[u8]) -> Self {
        self.file_with(name, contents, 0o644, 0)
    }

    pub(crate) fn file_with(mut self, name: &str, contents: &[u8], mode: u32, owner: u64) -> Self {
        let mut header = Self::header(EntryType::Regular, mode, contents.len());
        header.set_uid(owner);
        header.set_gid(owner);
        self.0.append_data(&mut header, name, contents).unwrap();
        self
    }

    pub(crate) fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0o777, 0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(crate) fn device(mut self, name: &str) -> Self {
        let mut header = Self::header(EntryType::Char, 0o666, 0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        self.0.append_data(&mut header, name, &b""[..]).unwrap();
        self
    }

    /// Gives the next entry an extended attribute.
    pub(crate) fn attribute(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0
            .append_pax_extensions([(key.as_str(), value)])
            .unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(contents: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(contents).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(contents: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(contents, ruzstd::encoding::CompressionLevel::Fastest)
}

pub(crate) fn sha256(contents: &[u8]) -> String {
    format!("{:x}", Sha256::digest(contents))
}

/// `cap_net_bind_service=ep`, as version 2 of `struct vfs_cap_data` has it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The two layers of an image that uses everything which layers can do.
pub(crate) fn layers() -> [Vec<u8>; 2] {
    let long = format!("srv/{}", "long-name/".repeat(20));
    let below = Archive::new()
        .directory("etc/")
        .file(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\napp:x:42:42::/srv:/bin/sh\n",
        )
        .file("etc/group", b"root:x:0:\napp:x:42:\n")
        .file_with("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o640, 0)
        .directory("usr/bin/")
        .symlink("bin", "usr/bin")
        .file_with("usr/bin/su", b"set-user-id", 0o4755, 0)
        .link(EntryType::Link, "usr/bin/su-too", "usr/bin/su")
        .file("srv/gone", b"below")
        .file("srv/kept", b"below")
        .file("srv/changed", b"below")
        .file("opaque/old", b"below")
        .file("opaque/deep/old", b"below")
        .file("tree/a/b", b"below")
        .file(&format!("{long}end"), b"far")
        .device("dev/null")
        .finish();
    let above = Archive::new()
        .file("srv/.wh.gone", b"")
        .file_with("srv/changed", b"above", 0o600, 42)
        .file("opaque/new", b"above")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/deep/new", b"above")
        .file(".wh.tree", b"")
        .file("bin/through-a-link", b"above")
        .attribute("user.note", b"hello")
        .attribute("security.capability", CAPABILITY)
        .file("srv/noted", b"above")
        .finish();
    [below, above]
}

/// The configuration of an image of these layers.
pub(crate) fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": "42:42",
            "Env": ["PATH=/usr/bin:/bin", "MODE=image"],
            "Entrypoint": ["/usr/bin/serve"],
            "Cmd": ["--port", "80 80"],
            "WorkingDir": "/srv",
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [],
    });
    serde_json::to_vec(&config).unwrap()
}

/// What `docker save` wrote before it wrote OCI layouts.
pub(crate) fn docker_save() -> Vec<u8> {
    let layers = layers();
    let config = config(&layers, "amd64");
    let config_name = format!("{}.json", sha256(&config));
    let names: Vec<String> = layers
        .iter()
        .map(|layer| format!("{}/layer.tar", sha256(&[layer, &b"v1"[..]].concat())))
        .collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": ["test:1"], "Layers": names }]);
    let mut archive = Archive::new();
    for (name, layer) in names.iter().zip(&layers) {
        archive = archive.file(name, layer);
    }
    archive
        .file(&config_name, &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}

/// Writes an OCI layout that offers an image for another machine as well. The second layer
/// is packed by `pack`.
pub(crate) fn oci_layout(directory: &Path, pack: fn(&[u8]) -> Vec<u8>) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |media_type: &str, contents: &[u8]| {
        let digest = sha256(contents);
        fs::write(blobs.join(&digest), contents).unwrap();
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": contents.len(),
        })
    };
    let [below, above] = layers();
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let manifest = |architecture: &str| {
        let config = config(&layers(), architecture);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": [blob(layer, &below), blob(&format!("{layer}+gzip"), &pack(&above))],
        });
        let mut descriptor = blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let inner = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest("arm64"), manifest("amd64")],
    });
    let inner = blob(
        "application/vnd.oci.image.index.v1+json",
        inner.to_string().as_bytes(),
    );
    let index = json!({ "schemaVersion": 2, "manifests": [inner] });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

/// The directory `directory` as an archive.
pub(crate) fn packed(directory: &Path) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_dir_all(".", directory).unwrap();
    builder.into_inner().unwrap()
}
