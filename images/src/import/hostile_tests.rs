//! Archives that try to reach what lies outside, to fill the disk, or to confuse.
//!
//! Each is put into a tree that lies beside a canary. Whatever becomes of the archive, the
//! canary and all around it must be as before.
//!
//! The tests run as root and some would empty directories if the tree did not hold. So each
//! unpacks with the scene as the root directory of its thread: more than the canary it could
//! not harm. Paths that archives name outside of the tree are paths there.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::layer::{Whiteouts, unpack};
use super::limits::{Budget, LimitError, Limits, Metered};
use super::oci::{ImageDirectory, ImageError};
use super::tarball::{ArchiveError, Problem};
use super::tree::{MAX_DEPTH, Tree};

/// An archive of which every byte is ours, unlike those of a library.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn entry(mut self, kind: u8, name: &[u8], link: &[u8], claimed: u64, data: &[u8]) -> Self {
        let mut header = [0_u8; 512];
        header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        // Binary, so that any size can be claimed.
        header[124] = 0x80;
        header[128..136].copy_from_slice(&claimed.to_be_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        self.0.extend(with_checksum(header));
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.entry(
            b'0',
            name.as_bytes(),
            b"",
            data.len() as u64,
            data.as_bytes(),
        )
    }

    fn directory(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", 0, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), 0, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), 0, b"")
    }

    /// An entry that extends the next header.
    fn extension(self, kind: u8, data: &[u8]) -> Self {
        self.entry(kind, b"extension", b"", data.len() as u64, data)
    }

    /// A file whose name does not fit into a header.
    fn long_file(self, name: &[u8], data: &str) -> Self {
        self.extension(b'L', name).file("short", data)
    }
}

fn with_checksum(mut header: [u8; 512]) -> [u8; 512] {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// A tree, and around it what an archive must not reach.
struct Scene {
    outside: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(outside.path().join("root")).unwrap();
        fs::create_dir(outside.path().join("neighbour")).unwrap();
        fs::write(outside.path().join("neighbour/canary"), "alive").unwrap();
        fs::write(outside.path().join("canary"), "alive").unwrap();
        Self { outside }
    }

    fn root(&self) -> PathBuf {
        self.outside.path().join("root")
    }

    /// A path outside of the tree, as a thread in the scene sees it.
    fn path(&self, name: &str) -> String {
        format!("/{name}")
    }

    fn unpack(&self, archive: &Raw) -> Result<(), ArchiveError> {
        self.unpack_as(archive, Whiteouts::Plain, Limits::default())
    }

    /// Unpacks, and sees that nothing outside has changed.
    fn unpack_as(
        &self,
        archive: &Raw,
        whiteouts: Whiteouts,
        limits: Limits,
    ) -> Result<(), ArchiveError> {
        let unpacked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
                nix::unistd::chroot(self.outside.path()).unwrap();
                nix::unistd::chdir("/").unwrap();
                let budget = Budget::new(limits);
                let tree = Tree::open(Path::new("/root")).unwrap();
                let reader = Metered::new(&archive.0[..], &budget);
                unpack(&tree, reader, whiteouts, &budget)
            });
            thread.join().unwrap()
        });
        self.assert_untouched();
        unpacked
    }

    fn assert_untouched(&self) {
        let mut found = Vec::new();
        for directory in ["", "neighbour"] {
            for entry in fs::read_dir(self.outside.path().join(directory)).unwrap() {
                found.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        found.sort();
        assert_eq!(found, ["canary", "canary", "neighbour", "root"]);
        for canary in ["canary", "neighbour/canary"] {
            let path = self.outside.path().join(canary);
            assert_eq!(fs::read(&path).unwrap(), b"alive");
            let metadata = path.symlink_metadata().unwrap();
            assert_eq!((metadata.nlink(), metadata.mode() & 0o7777), (1, 0o644));
        }
    }

    /// What a file inside holds.
    fn inside(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }
}

fn problem(result: Result<(), ArchiveError>) -> Problem {
    match result.unwrap_err() {
        ArchiveError::Entry { problem, .. } => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn dots_that_lead_out_are_refused() {
    for name in ["../canary", "a/../../canary", "..", "./../neighbour/canary"] {
        let scene = Scene::new();
        let result = scene.unpack(&Raw::default().file(name, "dead"));
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("leads out of the root file system"),
            "{message}"
        );
    }
}

#[test]
fn absolute_names_land_inside() {
    let scene = Scene::new();
    let canary = scene.path("canary");
    scene
        .unpack(
            &Raw::default()
                .file("/etc/x", "in")
                .extension(b'L', canary.as_bytes())
                .file("s", "in"),
        )
        .unwrap();
    assert_eq!(scene.inside("etc/x"), "in");
    assert_eq!(scene.inside(&canary[1..]), "in");
}

#[test]
fn links_on_the_way_stay_inside() {
    let scene = Scene::new();
    let archive = Raw::default()
        .symlink("up", "../..")
        .file("up/canary", "in");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside("canary"), "in");

    let scene = Scene::new();
    let out = scene.path("neighbour");
    let archive = Raw::default()
        .symlink("out", &out)
        .file("out/canary", "dead");
    assert_eq!(problem(scene.unpack(&archive)), Problem::NotBelowDirectory);

    // The same path is there inside as well: then this is where it leads.
    let archive = Raw::default()
        .extension(b'L', format!("{out}/").as_bytes())
        .directory("d")
        .symlink("out", &out)
        .file("out/canary", "in");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside(&format!("{}/canary", &out[1..])), "in");
}

#[test]
fn a_link_in_the_place_of_a_file_is_replaced_and_not_followed() {
    let scene = Scene::new();
    let archive = Raw::default()
        .symlink("file", &scene.path("canary"))
        .file("file", "in")
        .symlink("directory", &scene.path("neighbour"))
        .directory("directory/")
        .file("directory/canary", "in");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside("file"), "in");
    assert_eq!(scene.inside("directory/canary"), "in");
}

#[test]
fn a_directory_that_becomes_a_link_between_entries_leads_nowhere_else() {
    let scene = Scene::new();
    let archive = Raw::default()
        .directory("d")
        .file("d/first", "in")
        .symlink("d", "../neighbour")
        .file("d/canary", "dead");
    assert_eq!(problem(scene.unpack(&archive)), Problem::NotBelowDirectory);

    let scene = Scene::new();
    let archive = Raw::default()
        .directory("d")
        .file("d/first", "in")
        .symlink("d", "..")
        .file("d/canary", "in");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside("canary"), "in");
}

#[test]
fn hard_links_do_not_reach_out() {
    for (target, expected) in [
        ("../canary", Problem::Escapes),
        ("canary", Problem::NoLinkTarget),
        ("out/canary", Problem::NoLinkTarget),
        ("up/neighbour/canary", Problem::NoLinkTarget),
        ("up", Problem::NoLinkTarget),
        ("/", Problem::LinkToDirectory),
        ("d", Problem::LinkToDirectory),
    ] {
        let scene = Scene::new();
        let mut archive = Raw::default()
            .directory("d")
            .symlink("out", &scene.path("neighbour"));
        if target.starts_with("up/") {
            archive = archive.symlink("up", "../../..");
        }
        let result = scene.unpack(&archive.hard_link("link", target));
        assert_eq!(problem(result), expected, "{target}");
    }
    let scene = Scene::new();
    let canary = scene.path("canary");
    assert_eq!(
        problem(scene.unpack(&Raw::default().hard_link("link", &canary))),
        Problem::NoLinkTarget
    );
}

#[test]
fn a_hard_link_to_a_link_is_replaced_and_not_written_through() {
    let scene = Scene::new();
    let archive = Raw::default()
        .symlink("one", &scene.path("canary"))
        .hard_link("two", "one")
        .file("two", "in");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside("two"), "in");
}

#[test]
fn a_hard_link_to_itself_or_into_what_it_replaces_loses_nothing_outside() {
    let scene = Scene::new();
    let archive = Raw::default().file("a", "in").hard_link("a", "./a");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside("a"), "in");
    let archive = Raw::default().file("d/f", "in").hard_link("d", "d/f");
    assert_eq!(problem(scene.unpack(&archive)), Problem::NoLinkTarget);
}

#[test]
fn loops_of_links_end() {
    let scene = Scene::new();
    let archive = Raw::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/f", "x");
    assert_eq!(problem(scene.unpack(&archive)), Problem::NotBelowDirectory);
    let empty = Raw::default().symlink("a", "");
    assert_eq!(problem(scene.unpack(&empty)), Problem::BadLink);
    let long = Raw::default()
        .extension(b'K', &[b'x'; 5000])
        .symlink("a", "b");
    assert_eq!(problem(scene.unpack(&long)), Problem::BadLink);
}

#[test]
fn the_last_of_entries_with_one_name_wins() {
    let scene = Scene::new();
    let archive = Raw::default()
        .file("a", "first")
        .file("./a", "second")
        .directory("b")
        .file("b/below", "x")
        .file("b", "third");
    scene.unpack(&archive).unwrap();
    assert_eq!(scene.inside("a"), "second");
    assert_eq!(scene.inside("b"), "third");
}

#[test]
fn names_of_any_bytes_land_inside_and_absurd_ones_are_refused() {
    let scene = Scene::new();
    let odd: &[u8] = b"a\xff\xfe\n\"; dump /etc/shadow x";
    scene
        .unpack(&Raw::default().entry(b'0', odd, b"", 2, b"in"))
        .unwrap();
    let path = scene.root().join(std::ffi::OsStr::from_bytes(odd));
    assert_eq!(fs::read(path).unwrap(), b"in");

    let zero = b"21 path=ab\0../canary\n";
    for (archive, expected) in [
        (Raw::default().file("", "x"), Problem::NoName),
        (
            Raw::default().long_file(&[b'a'; 256], "x"),
            Problem::LongName,
        ),
        (
            Raw::default().long_file(&b"ab/".repeat(1500), "x"),
            Problem::LongName,
        ),
        (
            Raw::default().extension(b'x', zero).file("s", "x"),
            Problem::ZeroByte,
        ),
    ] {
        assert_eq!(problem(scene.unpack(&archive)), expected);
    }
    let name = [b'n'; 255];
    scene
        .unpack(&Raw::default().long_file(&name, "in"))
        .unwrap();
    assert_eq!(scene.inside(std::str::from_utf8(&name).unwrap()), "in");
}

#[test]
fn directories_lie_only_so_deep_also_by_way_of_links() {
    let scene = Scene::new();
    let deep = "d/".repeat(MAX_DEPTH as usize + 1);
    let archive = Raw::default()
        .extension(b'L', deep.as_bytes())
        .directory("d");
    assert_eq!(problem(scene.unpack(&archive)), Problem::TooDeep);

    let scene = Scene::new();
    let step = "d/".repeat(100);
    let mut archive = Raw::default();
    let mut name = String::new();
    for link in ["x", "y", "z"] {
        let below = format!("{name}{step}");
        archive = archive
            .extension(b'L', below.as_bytes())
            .directory("d")
            .extension(b'K', below.as_bytes())
            .symlink(link, "t");
        name = format!("{link}/");
    }
    assert_eq!(problem(scene.unpack(&archive)), Problem::TooDeep);
}

#[test]
fn devices_and_pipes_are_left_out() {
    let scene = Scene::new();
    let mut archive = Raw::default();
    for kind in [b'3', b'4', b'6'] {
        archive = archive.entry(kind, b"node", b"", 0, b"");
    }
    scene.unpack(&archive.file("after", "in")).unwrap();
    assert!(scene.root().join("node").symlink_metadata().is_err());
    assert_eq!(scene.inside("after"), "in");
}

#[test]
fn numbers_of_users_and_modes_are_kept_and_absurd_ones_refused() {
    let scene = Scene::new();
    let mut archive = Raw::default().extension(b'x', b"15 uid=4000000\n14 gid=100000\n".as_slice());
    archive = archive.file("a", "x");
    let header = archive.0.len() - 1024;
    let mut block: [u8; 512] = archive.0[header..header + 512].try_into().unwrap();
    block[100..107].copy_from_slice(b"0006755");
    archive.0[header..header + 512].copy_from_slice(&with_checksum(block));
    scene.unpack(&archive).unwrap();
    let metadata = scene.root().join("a").metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (4_000_000, 100_000));
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o6755);

    for uid in [&b"18 uid=4294967295\n"[..], b"18 uid=9999999999\n"] {
        let archive = Raw::default().extension(b'x', uid).file("b", "x");
        assert_eq!(problem(scene.unpack(&archive)), Problem::BadOwner);
    }
}

#[test]
fn only_harmless_extended_attributes_are_taken() {
    let scene = Scene::new();
    let record = |text: &str| {
        let length = text.len() + 4;
        format!("{length} {text}\n")
    };
    let records =
        record("SCHILY.xattr.user.note=hello") + &record("SCHILY.xattr.trusted.overlay.opaque=y");
    let archive = Raw::default()
        .extension(b'x', records.as_bytes())
        .file("a", "x");
    scene.unpack(&archive).unwrap();
    let mut names = [0_u8; 256];
    let length = rustix::fs::listxattr(scene.root().join("a"), &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    assert!(
        names.contains("user.note") && !names.contains("trusted"),
        "{names}"
    );
}

#[test]
fn sparse_files_are_refused_before_they_swell() {
    let scene = Scene::new();
    for archive in [
        Raw::default().entry(b'S', b"hole", b"", 512, &[0; 512]),
        Raw::default()
            .extension(b'x', b"22 GNU.sparse.major=1\n")
            .file("hole", "x"),
    ] {
        let message = scene.unpack(&archive).unwrap_err().to_string();
        assert!(message.contains("without --sparse"), "{message}");
    }
}

#[test]
fn a_size_that_is_claimed_takes_no_room() {
    let scene = Scene::new();
    let archive = Raw::default().entry(b'0', b"huge", b"", 1 << 60, b"little");
    assert!(matches!(
        scene.unpack(&archive),
        Err(ArchiveError::Truncated)
    ));
    assert!(scene.root().join("huge").metadata().unwrap().blocks() < 2048);
    let archive = Raw::default().entry(b'0', b"huge", b"", u64::MAX, b"little");
    assert!(matches!(
        scene.unpack(&archive),
        Err(ArchiveError::BadHeader { .. })
    ));
}

#[test]
fn what_unpacks_to_too_much_is_stopped_at_the_limit() {
    let scene = Scene::new();
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        entries: 100,
    };
    let tree = Tree::open(&scene.root()).unwrap();
    let zeros = vec![0_u8; 8 << 20];
    let archive = Raw::default().entry(b'0', b"bomb", b"", zeros.len() as u64, &zeros);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&archive.0).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        &archive.0[..],
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    for packed in [gzip.finish().unwrap(), zstd] {
        assert!(packed.len() < 200_000);
        let budget = Budget::new(limits);
        let reader = super::compression::unpacked(&packed[..]).unwrap();
        let error = unpack(
            &tree,
            Metered::new(reader, &budget),
            Whiteouts::Plain,
            &budget,
        );
        assert!(
            matches!(error, Err(ArchiveError::Limit(LimitError::Bytes { limit })) if limit == 1 << 20),
            "{error:?}"
        );
    }
    let many = (0..101).fold(Raw::default(), |archive, n| {
        archive.directory(&format!("d{n}"))
    });
    let error = scene
        .unpack_as(&many, Whiteouts::Plain, limits)
        .unwrap_err();
    assert!(
        error.to_string().contains("more than the 100 entries"),
        "{error}"
    );
    // Zeros behind the end of an archive are bytes like others.
    let tail = Raw([vec![0; 1024], vec![0; 2 << 20]].concat());
    assert!(scene.unpack_as(&tail, Whiteouts::Plain, limits).is_err());
}

#[test]
fn headers_that_swell_in_memory_are_refused() {
    let scene = Scene::new();
    for kind in [b'L', b'K', b'x', b'g'] {
        let archive = Raw::default().entry(kind, b"extension", b"", 1 << 40, b"");
        assert!(matches!(
            scene.unpack(&archive),
            Err(ArchiveError::LongExtension)
        ));
    }
    for records in [
        &b"5 a\n"[..],
        b"99 a=b\n",
        b"0 a=b\n",
        b"x a=b\n",
        b"+6 a=b\n",
        b"18446744073709551615 a=b\n",
    ] {
        let archive = Raw::default().extension(b'x', records).file("a", "x");
        assert!(
            matches!(scene.unpack(&archive), Err(ArchiveError::BadExtension)),
            "{records:?}"
        );
    }
}

#[test]
fn damaged_archives_are_named_as_such() {
    let scene = Scene::new();
    let archive = Raw::default().file("a", &"x".repeat(3000));
    assert!(matches!(
        scene.unpack(&Raw(archive.0[..1000].to_vec())),
        Err(ArchiveError::Truncated)
    ));
    assert!(matches!(
        scene.unpack(&Raw(archive.0[..100].to_vec())),
        Err(ArchiveError::Truncated)
    ));
    assert!(matches!(
        scene.unpack(&Raw(vec![7; 2048])),
        Err(ArchiveError::BadHeader { at: 0 })
    ));
    let unknown = Raw::default().entry(b'M', b"part", b"", 0, b"");
    assert!(matches!(
        scene.unpack(&unknown),
        Err(ArchiveError::UnknownType { kind: 'M', .. })
    ));
}

#[test]
fn whiteouts_take_nothing_away_outside() {
    let layer = |archive: Raw| {
        let scene = Scene::new();
        let out = scene.path("neighbour");
        let below = Raw::default()
            .file("kept", "in")
            .symlink("out", &out)
            .symlink("up", "../..");
        scene.unpack(&below).unwrap();
        let result = scene.unpack_as(&archive, Whiteouts::Meant, Limits::default());
        (scene, result)
    };
    for name in ["out/.wh.canary", "out/.wh..wh..opq", "nowhere/.wh.x"] {
        let (scene, result) = layer(Raw::default().file(name, ""));
        // The link leads nowhere inside, so there is nothing to take away.
        result.unwrap();
        assert_eq!(scene.inside("kept"), "in");
    }
    let (scene, result) = layer(Raw::default().file("up/.wh.kept", ""));
    result.unwrap();
    assert!(!scene.root().join("kept").exists());
    for name in [".wh.", ".wh..", ".wh..."] {
        let (scene, result) = layer(Raw::default().file(name, ""));
        assert_eq!(problem(result), Problem::BadWhiteout, "{name}");
        assert_eq!(scene.inside("kept"), "in");
    }
    let (_, result) = layer(Raw::default().file("../.wh.canary", ""));
    assert_eq!(problem(result), Problem::Escapes);
}

#[test]
fn an_image_directory_is_not_left_by_its_own_names() {
    let scene = Scene::new();
    let canary = scene.outside.path().join("canary");
    symlink(&canary, scene.root().join("link")).unwrap();
    nix::unistd::mkfifo(&scene.root().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let directory = ImageDirectory::open(&scene.root()).unwrap();
    for name in ["link", "pipe", "missing", canary.to_str().unwrap()] {
        assert!(
            matches!(directory.file(name), Err(ImageError::Missing { .. })),
            "{name}"
        );
    }
    for name in ["../canary", "", "a/../../canary"] {
        assert!(
            matches!(directory.file(name), Err(ImageError::Name { .. })),
            "{name}"
        );
    }
    let id = "0".repeat(64);
    let manifest = format!(r#"[{{"Config":"{id}.json","Layers":["../canary"]}}]"#);
    fs::write(scene.root().join("manifest.json"), manifest).unwrap();
    fs::write(scene.root().join(format!("{id}.json")), "{}").unwrap();
    assert!(matches!(directory.image(), Err(ImageError::Corrupt { .. })));
    File::create(scene.root().join("manifest.json"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    assert!(matches!(directory.image(), Err(ImageError::TooLong { .. })));
    scene.assert_untouched();
}

/// One entry of any kind, with names that meet each other.
fn any_entry() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop::sample::select(vec!["a", "b", "..", ".", "", "up", ".wh.a", ".wh..wh..opq"]);
    let path = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(vec![b'0', b'1', b'2', b'3', b'5', b'5', b'0']);
    (kind, path.clone(), path)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_entries_leaves_the_tree(entries in prop::collection::vec(any_entry(), 1..20)) {
        let scene = Scene::new();
        for (kind, name, link) in entries {
            let link = if kind == b'2' && link == "up" { scene.path("neighbour") } else { link };
            let archive = Raw::default().entry(kind, name.as_bytes(), link.as_bytes(), 0, b"");
            // Each alone, so that one that is refused does not end the game.
            scene.unpack_as(&archive, Whiteouts::Meant, Limits::default()).ok();
        }
        prop_assert!(fs::remove_dir_all(scene.root()).is_ok());
    }

    #[test]
    fn no_bytes_confuse_the_reader(
        flips in prop::collection::vec((0_usize..4096, any::<u8>()), 0..40),
        fix in any::<bool>(),
    ) {
        let mut archive = Raw::default()
            .extension(b'x', b"18 path=some/name\n")
            .file("a", &"x".repeat(700))
            .symlink("b", "..")
            .hard_link("c", "b");
        for (at, byte) in flips {
            let at = at % archive.0.len();
            archive.0[at] = byte;
        }
        if fix {
            let block: [u8; 512] = archive.0[..512].try_into().unwrap();
            archive.0[..512].copy_from_slice(&with_checksum(block));
        }
        let scene = Scene::new();
        scene.unpack(&archive).ok();
    }
}

#[test]
fn the_canary_would_tell() {
    let scene = Scene::new();
    fs::write(scene.outside.path().join("canary"), "dead").unwrap();
    assert!(std::panic::catch_unwind(|| scene.assert_untouched()).is_err());
}
