use std::collections::BTreeMap;

use wrenn_core::snapshot::{BuildDetails, BuildManifest, InspectedLayer};

use super::*;

fn inspection() -> Inspection {
    let id = |letter: &str| {
        format!("bd{}", letter.repeat(20))
            .parse::<BuildId>()
            .unwrap()
    };
    let layer = |letter, present, used_bytes| InspectedLayer {
        id: id(letter),
        present,
        used_bytes,
        apparent_bytes: 512 << 20,
        allocated_bytes: 40 << 20,
        chunk_bytes: 64 << 10,
        sums_checksum: "0123456789abcdef".to_owned(),
    };
    Inspection {
        id: id("b"),
        directory: PathBuf::from("/builds/b"),
        generation: 1,
        manifest: Some(BuildManifest {
            version: 1,
            id: id("b"),
            parent: Some(id("a")),
            compacted_from: None,
            created_unix_ms: 0,
            details: BuildDetails {
                vmm: "wrenn-vmm".to_owned(),
                vmm_version: "0.1.0".to_owned(),
                vcpus: 2,
                labels: BTreeMap::from([("template".to_owned(), "base".to_owned())]),
            },
            files: BTreeMap::new(),
        }),
        page_bytes: 4096,
        memory_bytes: 512 << 20,
        zero_bytes: 384 << 20,
        extents: 1234,
        header_bytes: 14_996,
        vmstate_bytes: 20_000,
        needs_others: true,
        chain: vec![layer("b", true, 3 << 20), layer("a", false, 125 << 20)],
    }
}

#[test]
fn a_build_is_described_with_what_is_missing() {
    let wanted = "\
build       bdbbbbbbbbbbbbbbbbbbbb
generation  1
parent      bdaaaaaaaaaaaaaaaaaaaa
VMM         wrenn-vmm 0.1.0
vCPUs       2
template    base
memory      512.0 MiB in pages of 4.0 KiB, 384.0 MiB zero (75 %)
header      1234 extents, 14.6 KiB
VM state    19.5 KiB
memory comes from
  bdbbbbbbbbbbbbbbbbbbbb     3.0 MiB of 512.0 MiB (40.0 MiB on disk), checksums 0123456789abcdef a 64.0 KiB
  bdaaaaaaaaaaaaaaaaaaaa   125.0 MiB MISSING
";
    assert_eq!(describe(&inspection()), wanted);
}

#[test]
fn json_says_whether_it_was_verified() {
    let value = json(&inspection(), None).unwrap();
    assert_eq!(value.get("verified"), None);
    assert_eq!(value["chain"][1]["present"], false);
    assert_eq!(value["manifest"]["labels"]["template"], "base");
    let value = json(&inspection(), Some(&Ok(()))).unwrap();
    assert_eq!(value["verified"], true);
}

#[test]
fn a_build_is_found_by_id_by_directory_and_by_its_header() {
    let directory = tempfile::tempdir().unwrap();
    let root = RootDirectory::new(directory.path());
    let id = "bdaaaaaaaaaaaaaaaaaaaa";
    let build = root.builds().join(id);
    std::fs::create_dir_all(&build).unwrap();
    std::fs::write(build.join("header.bin"), "").unwrap();
    let build = build.canonicalize().unwrap();
    assert_eq!(
        directory_of(&root, Path::new(id))
            .unwrap()
            .canonicalize()
            .unwrap(),
        build
    );
    assert_eq!(directory_of(&root, &build).unwrap(), build);
    assert_eq!(
        directory_of(&root, &build.join("header.bin")).unwrap(),
        build
    );
}

#[test]
fn build_is_found_by_name_of_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let root = RootDirectory::new(directory.path());
    let id = "bdaaaaaaaaaaaaaaaaaaaa";
    let named = serde_json::json!({
        "version": 1,
        "name": "warmed-up",
        "created_at": "2026-11-20T12:00:00Z",
        "source": "sbaaaaaaaaaaaaaaaaaaaa",
        "template": "base",
        "frozen": {
            "build": id,
            "resources": { "vcpus": 1, "memory_mib": 128 },
            "setup": { "env": {} },
        },
    });
    std::fs::create_dir_all(root.named_snapshots()).unwrap();
    let record = root.named_snapshots().join("warmed-up.json");
    std::fs::write(record, named.to_string()).unwrap();
    let found = |name: &str| directory_of(&root, Path::new(name)).unwrap();
    assert_eq!(found("warmed-up"), root.builds().join(id));
    assert!(!found("another").exists());
}
