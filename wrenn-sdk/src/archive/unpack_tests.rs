use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use tar::{Builder, Header};

use super::*;

struct Fixture {
    directory: tempfile::TempDir,
    archive: Builder<Vec<u8>>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            archive: Builder::new(Vec::new()),
        }
    }

    /// Adds an entry as it is, with names that a decent packer refuses.
    fn add(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.archive.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", data)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn unpack(&mut self) -> Result<Vec<Skipped>, ArchiveError> {
        let unpacked = self.unpack_with(OutwardLinks::Keep)?;
        Ok(unpacked.skipped)
    }

    fn unpack_with(&mut self, links: OutwardLinks) -> Result<Unpacked, ArchiveError> {
        let bytes = self.archive.get_ref().clone();
        unpack(&bytes[..], &self.path("target"), links, |_| {})
    }
}

#[test]
fn tree_is_unpacked_with_modes() {
    let mut fixture = Fixture::new()
        .add(EntryType::Directory, "closed/", "", b"")
        .file("closed/a", b"hello")
        .file("./b/c/d", b"")
        .link("closed/up", "../b/c")
        .add(EntryType::Link, "again", "closed/a", b"");
    assert!(fixture.unpack().unwrap().is_empty());
    let a = fixture.path("target/closed/a");
    assert_eq!(fs::read(&a).unwrap(), b"hello");
    let metadata = fs::metadata(&a).unwrap();
    // Without the set-user-ID bit.
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    assert_eq!(metadata.mtime(), 1_700_000_000);
    assert_eq!(metadata.nlink(), 2);
    assert!(fixture.path("target/closed/up/d").is_file());
    // A second time over what is there.
    assert!(fixture.unpack().unwrap().is_empty());
    let names = fs::read_dir(fixture.path("target/closed")).unwrap();
    assert_eq!(names.count(), 2, "no temporary file stays");
}

#[test]
fn names_that_lead_out_end_unpacking() {
    for name in ["../out", "/tmp/wrenn-out", "a/../../out", "a/b/.."] {
        let mut fixture = Fixture::new().file(name, b"x").file("later", b"x");
        let error = fixture.unpack().unwrap_err();
        assert!(matches!(error, ArchiveError::LeadsOut { .. }), "{error:?}");
        assert!(!fixture.path("out").exists() && !fixture.path("target/later").exists());
    }
}

#[test]
fn links_that_lead_out_are_kept_and_told() {
    for target in [
        "/usr/bin/python3",
        "/no/such",
        "..",
        "../../x",
        "a/../..",
        "x/..",
    ] {
        let mut fixture = Fixture::new().link("l", target).link("in", "later");
        let unpacked = fixture.unpack_with(OutwardLinks::Keep).unwrap();
        assert_eq!(unpacked.skipped.len(), 0, "{target}");
        assert_eq!(unpacked.outward_links, ["l"], "{target}");
        let link = fs::read_link(fixture.path("target/l")).unwrap();
        assert_eq!(link.to_str(), Some(target));
        // Again over itself.
        fixture.unpack_with(OutwardLinks::Keep).unwrap();
    }
}

#[test]
fn unwanted_links_that_lead_out_are_left_out() {
    for target in ["/etc", "..", "../../x", "a/../..", "x/.."] {
        let mut fixture = Fixture::new().link("l", target).file("later", b"x");
        let unpacked = fixture.unpack_with(OutwardLinks::LeaveOut).unwrap();
        assert_eq!(unpacked.skipped.len(), 1, "{target}");
        assert_eq!(unpacked.outward_links.len(), 0, "{target}");
        assert!(fixture.path("target/l").symlink_metadata().is_err());
        assert!(fixture.path("target/later").exists());
    }
}

#[test]
fn links_to_nothing_are_left_out() {
    let mut fixture = Fixture::new().link("l", "").file("later", b"x");
    assert_eq!(fixture.unpack().unwrap().len(), 1);
    assert!(fixture.path("target/later").exists());
}

/// Links into a directory outside, and entries that would go through them.
#[test]
fn links_of_archive_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let to = outside.path().to_str().unwrap().to_owned();
    let secret = format!("{to}/secret");
    fs::write(&secret, "untouched").unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o751)).unwrap();
    let linked = || Fixture::new().link("l", &to);
    let to_secret = || Fixture::new().link("l", &secret);
    let directory = |fixture: Fixture, name| fixture.add(EntryType::Directory, name, "", b"");
    let hard_link = |fixture: Fixture, target| fixture.add(EntryType::Link, "h", target, b"");
    for (number, (mut fixture, is_refused)) in [
        (linked().file("l/evil", b"x"), true),
        (linked().file("l/secret", b"x"), true),
        (directory(linked(), "l/evil/"), true),
        (directory(linked(), "l/"), true),
        (linked().link("l/evil", "x"), true),
        (hard_link(linked(), "l/secret"), true),
        (linked().link("m", "l").file("m/evil", b"x"), true),
        (
            directory(Fixture::new(), "l/")
                .link("l", &to)
                .file("l/evil", b"x"),
            true,
        ),
        // The link itself is replaced, or gets another name.
        (to_secret().file("l", b"new"), false),
        (to_secret().link("l", &to), false),
        (hard_link(to_secret(), "l"), false),
    ]
    .into_iter()
    .enumerate()
    {
        let unpacked = fixture.unpack();
        assert_eq!(unpacked.is_err(), is_refused, "{number}: {unpacked:?}");
        let names = fs::read_dir(&to).unwrap();
        assert_eq!(names.count(), 1, "{number}");
        assert_eq!(
            fs::read_to_string(&secret).unwrap(),
            "untouched",
            "{number}"
        );
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1, "{number}");
        let mode = fs::metadata(&to).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751, "{number}");
    }
}

#[test]
fn no_entry_is_written_through_link() {
    let mut fixture = Fixture::new()
        .add(EntryType::Directory, "d/", "", b"")
        .link("l", "d")
        .file("l/f", b"x");
    let error = fixture.unpack().unwrap_err();
    assert!(
        matches!(error, ArchiveError::NotBelowDirectory { .. }),
        "{error:?}"
    );
    assert!(!fixture.path("target/d/f").exists());
}

#[test]
fn no_entry_is_written_through_link_of_target() {
    let mut fixture = Fixture::new().file("l/f", b"x");
    fs::create_dir_all(fixture.path("target")).unwrap();
    fs::create_dir(fixture.path("out")).unwrap();
    symlink(fixture.path("out"), fixture.path("target/l")).unwrap();
    let error = fixture.unpack().unwrap_err();
    assert!(
        matches!(error, ArchiveError::NotBelowDirectory { .. }),
        "{error:?}"
    );
    assert!(!fixture.path("out/f").exists());
}

#[test]
fn file_replaces_link_and_leaves_its_target() {
    let mut fixture = Fixture::new().file("f", b"new");
    fs::create_dir_all(fixture.path("target")).unwrap();
    fs::write(fixture.path("out"), "old").unwrap();
    symlink(fixture.path("out"), fixture.path("target/f")).unwrap();
    fixture.unpack().unwrap();
    assert_eq!(fs::read(fixture.path("out")).unwrap(), b"old");
    assert_eq!(fs::read(fixture.path("target/f")).unwrap(), b"new");
}

#[test]
fn hard_links_stay_inside() {
    for link in ["../out", "/etc/passwd", "l/f", "missing", ""] {
        let mut fixture = Fixture::new()
            .link("l", ".")
            .add(EntryType::Link, "h", link, b"");
        fs::write(fixture.path("out"), "secret").unwrap();
        assert!(fixture.unpack().is_err(), "{link}");
        assert!(fixture.path("target/h").symlink_metadata().is_err());
    }
}

#[test]
fn devices_and_pipes_are_left_out() {
    let mut fixture = Fixture::new()
        .add(EntryType::Char, "c", "", b"")
        .add(EntryType::Block, "b", "", b"")
        .add(EntryType::Fifo, "p", "", b"");
    assert_eq!(fixture.unpack().unwrap().len(), 3);
    assert_eq!(fs::read_dir(fixture.path("target")).unwrap().count(), 0);
}

#[test]
fn sparse_files_and_long_extensions_are_refused() {
    let mut fixture = Fixture::new().add(EntryType::GNUSparse, "s", "", b"");
    let error = fixture.unpack().unwrap_err();
    assert!(matches!(error, ArchiveError::Sparse { .. }), "{error:?}");
    let long = vec![b'a'; (1 << 20) + 1];
    for kind in [EntryType::GNULongName, EntryType::XHeader] {
        let mut fixture = Fixture::new().add(kind, "x", "", &long);
        let error = fixture.unpack().unwrap_err();
        assert!(matches!(error, ArchiveError::BadExtension), "{error:?}");
    }
    let mut fixture = Fixture::new()
        .add(EntryType::XHeader, "x", "", b"12 size=999\n")
        .file("f", b"x");
    assert!(fixture.unpack().is_err());
}

#[test]
fn long_names_are_taken_and_checked() {
    let long = "d/".repeat(60) + "file";
    let mut fixture = Fixture::new()
        .add(EntryType::GNULongName, "x", "", long.as_bytes())
        .file("short", b"x");
    fixture.unpack().unwrap();
    assert!(fixture.path("target").join(&long).is_file());
    for (kind, data) in [
        (EntryType::GNULongName, &b"../out\0"[..]),
        (EntryType::XHeader, b"15 path=../out\n"),
    ] {
        let mut fixture = Fixture::new().add(kind, "x", "", data).file("short", b"x");
        let error = fixture.unpack().unwrap_err();
        assert!(matches!(error, ArchiveError::LeadsOut { .. }), "{error:?}");
    }
}

#[test]
fn truncated_archive_is_an_error_and_leaves_old_file() {
    let fixture = Fixture::new().file("f", &[b'x'; 4096]);
    let bytes = fixture.archive.get_ref();
    fs::create_dir_all(fixture.path("target")).unwrap();
    fs::write(fixture.path("target/f"), "old").unwrap();
    let error = unpack(
        &bytes[..1000],
        &fixture.path("target"),
        OutwardLinks::Keep,
        |_| {},
    )
    .unwrap_err();
    assert!(matches!(error, ArchiveError::Read(_)), "{error:?}");
    assert_eq!(fs::read(fixture.path("target/f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(fixture.path("target")).unwrap().count(), 1);
}

#[test]
fn packed_tree_unpacks_alike() {
    let fixture = Fixture::new();
    let source = fixture.path("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/file"), vec![7; 100_000]).unwrap();
    fs::set_permissions(source.join("a/b/file"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(source.join("n".repeat(200)), "long").unwrap();
    symlink("b/file", source.join("a/link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    assert_eq!(crate::archive::size_of(&source).unwrap(), 100_004);
    let mut bytes = Vec::new();
    let skipped = crate::archive::pack(&source, &mut bytes, |_| {}).unwrap();
    assert_eq!(skipped.len(), 1);
    let target = fixture.path("target");
    let unpacked = unpack(&bytes[..], &target, OutwardLinks::Keep, |_| {}).unwrap();
    assert_eq!(unpacked.skipped.len(), 0);
    assert_eq!(fs::read(target.join("a/link")).unwrap(), vec![7; 100_000]);
    assert!(target.join("n".repeat(200)).is_file());
    let mode = fs::metadata(target.join("a/b/file")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o750);
}
