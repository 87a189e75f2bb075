use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

fn user() -> User {
    User {
        name: "someone".into(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        groups: vec![],
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

/// A header as an attacker writes it: nothing of the name is checked.
fn raw(kind: EntryType, name: &[u8], link: &[u8], size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o640);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    header
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, rest) in entries {
        let (link, data) = match kind {
            EntryType::Symlink | EntryType::Link => (rest.as_bytes(), &b""[..]),
            _ => (&b""[..], rest.as_bytes()),
        };
        let header = raw(*kind, name.as_bytes(), link, data.len() as u64);
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpack_into(directory: &Path, archive: &[u8]) -> Result<u64, HttpError> {
    let root = File::open(directory).unwrap();
    unpack(root.into(), &user(), archive)
}

/// Everything in a directory, names with what they hold.
fn tree(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                found.push((name, "/".to_owned()));
                pending.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.push((name, format!("-> {}", target.display())));
            } else {
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn trees_are_unpacked_with_modes_times_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&[
        (EntryType::Directory, "./", ""),
        (EntryType::Directory, "./a/", ""),
        (EntryType::Regular, "./a/file", "contents"),
        (EntryType::Regular, "new/deep/file", "more"),
        (EntryType::Symlink, "a/up", "../new"),
        (EntryType::Symlink, "a/dangling", "nowhere"),
        (EntryType::Symlink, "bin/python", "/usr/bin/python3"),
        (EntryType::Symlink, "out", "a/../../.."),
        (EntryType::Link, "hard", "a/file"),
    ]);
    assert_eq!(unpack_into(dir.path(), &archive).unwrap(), 9);
    let expected = [
        ("a", "/"),
        ("a/dangling", "-> nowhere"),
        ("a/file", "contents"),
        ("a/up", "-> ../new"),
        ("bin", "/"),
        ("bin/python", "-> /usr/bin/python3"),
        ("hard", "contents"),
        ("new", "/"),
        ("new/deep", "/"),
        ("new/deep/file", "more"),
        ("out", "-> a/../../.."),
    ]
    .map(|(name, what)| (name.to_owned(), what.to_owned()));
    assert_eq!(tree(dir.path()), expected);
    let file = dir.path().join("a/file").metadata().unwrap();
    assert_eq!(file.permissions().mode() & 0o7777, 0o640);
    assert_eq!((file.mtime(), file.nlink()), (1_000_000_000, 2));
    // Again over itself: what is there is replaced.
    assert_eq!(unpack_into(dir.path(), &archive).unwrap(), 9);
    assert_eq!(tree(dir.path()), expected);
}

#[test]
fn files_are_replaced_whole_and_links_are_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "untouched").unwrap();
    std::os::unix::fs::symlink(&secret, dir.path().join("link")).unwrap();
    fs::write(dir.path().join("file"), "old").unwrap();
    let mut archive = archive(&[
        (EntryType::Regular, "link", "new"),
        (EntryType::Regular, "file", "half of the new"),
    ]);
    // Cut off in the last file.
    archive.truncate(512 + 512 + 512 + 4);
    let error = unpack_into(dir.path(), &archive).unwrap_err();
    assert!(error.message.contains("middle of an entry"), "{error:?}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched");
    let expected =
        [("file", "old"), ("link", "new")].map(|(name, what)| (name.to_owned(), what.to_owned()));
    assert_eq!(tree(dir.path()), expected);
}

/// Each of these archives is refused, by the name of its last entry.
#[test]
fn hostile_entries_are_refused_by_name() {
    use EntryType::{Block, Char, Directory, Fifo, GNUSparse, Link, Regular, Symlink};
    let hostile: &[&[(EntryType, &str, &str)]] = &[
        &[(Regular, "/etc/evil", "x")],
        &[(Regular, "../evil", "x")],
        &[(Regular, "a/../../evil", "x")],
        &[(Regular, "a/..", "x")],
        &[(Directory, "../evil", "")],
        &[(Symlink, "evil", "")],
        &[(Symlink, "l", "/etc"), (Regular, "l/evil", "x")],
        &[(Symlink, "l", "/etc"), (Directory, "l", "")],
        &[(Symlink, "l", ".."), (Directory, "l/evil", "")],
        &[(Symlink, "l", ".."), (Link, "evil", "l/outside")],
        &[(Symlink, "l", "../outside"), (Link, "evil", "l")],
        &[
            (Symlink, "l", "m"),
            (Symlink, "m", ".."),
            (Regular, "l/evil", "x"),
        ],
        &[(Symlink, "l", "."), (Symlink, "l/evil", "..")],
        &[(Symlink, "l", "a"), (Regular, "l/evil", "x")],
        &[(Regular, "f", "x"), (Regular, "f/evil", "x")],
        &[(Link, "evil", "../outside")],
        &[(Link, "evil", "/etc/passwd")],
        &[(Link, "evil", "missing")],
        &[(Symlink, "l", "a"), (Link, "evil", "l")],
        &[(Directory, "a", ""), (Link, "evil", "a")],
        &[(Directory, "evil", ""), (Regular, "evil", "x")],
        &[(Regular, "evil", "x"), (Directory, "evil", "")],
        &[(Char, "evil", "")],
        &[(Block, "evil", "")],
        &[(Fifo, "evil", "")],
        &[(GNUSparse, "evil", "")],
        &[(Regular, "", "x")],
    ];
    for entries in hostile {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("target");
        fs::create_dir(&dir).unwrap();
        fs::write(above.path().join("outside"), "untouched").unwrap();
        let error = unpack_into(&dir, &archive(entries)).unwrap_err();
        assert_eq!(
            error.status,
            http::StatusCode::BAD_REQUEST,
            "{entries:?}: {error:?}"
        );
        let name = entries.last().unwrap().1;
        assert!(
            error.message.contains(&format!("'{name}'")),
            "{entries:?}: {error:?}"
        );
        let around: Vec<_> = fs::read_dir(above.path()).unwrap().collect();
        assert_eq!(around.len(), 2, "{entries:?}");
        let outside = above.path().join("outside");
        assert_eq!(outside.metadata().unwrap().nlink(), 1, "{entries:?}");
        assert_eq!(fs::read_to_string(outside).unwrap(), "untouched");
    }
}

/// Links into a directory outside, of the same archive, and entries that would go through them.
#[test]
fn links_of_archive_are_kept_and_not_followed() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let above = tempfile::tempdir().unwrap();
    let outside = above.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "untouched").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o751)).unwrap();
    let to = outside.to_str().unwrap();
    let secret = format!("{to}/secret");
    for (number, (entries, is_refused)) in [
        (vec![(Symlink, "l", to), (Regular, "l/evil", "x")], true),
        (vec![(Symlink, "l", to), (Regular, "l/secret", "x")], true),
        (vec![(Symlink, "l", to), (Directory, "l/evil", "")], true),
        (vec![(Symlink, "l", to), (Directory, "l", "")], true),
        (vec![(Symlink, "l", to), (Symlink, "l/evil", "x")], true),
        (vec![(Symlink, "l", to), (Link, "h", "l/secret")], true),
        (vec![(Symlink, "l", &secret), (Link, "h", "l")], true),
        (
            vec![
                (Symlink, "l", "m"),
                (Symlink, "m", to),
                (Regular, "l/evil", "x"),
            ],
            true,
        ),
        (
            vec![
                (Directory, "l", ""),
                (Symlink, "l", to),
                (Regular, "l/evil", "x"),
            ],
            true,
        ),
        (
            vec![(Symlink, "l", &secret), (Regular, "l", "replaced")],
            false,
        ),
        (vec![(Symlink, "l", to), (Symlink, "l", &secret)], false),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = above.path().join(format!("target-{number}"));
        fs::create_dir(&dir).unwrap();
        let unpacked = unpack_into(&dir, &archive(&entries));
        assert_eq!(unpacked.is_err(), is_refused, "{entries:?}: {unpacked:?}");
        let expected = [("secret".to_owned(), "untouched".to_owned())];
        assert_eq!(tree(&outside), expected, "{entries:?}");
        let metadata = outside.join("secret").metadata().unwrap();
        assert_eq!(metadata.nlink(), 1, "{entries:?}");
        let mode = outside.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751, "{entries:?}");
    }
}

#[test]
fn directories_that_are_links_are_not_entered() {
    let above = tempfile::tempdir().unwrap();
    let (dir, outside) = (above.path().join("target"), above.path().join("outside"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink("../outside", dir.join("way")).unwrap();
    for entries in [
        [(EntryType::Regular, "way/evil", "x")],
        [(EntryType::Directory, "way/evil", "")],
        [(EntryType::Directory, "way", "")],
        [(EntryType::Symlink, "way/evil", "x")],
    ] {
        let error = unpack_into(&dir, &archive(&entries)).unwrap_err();
        assert!(error.message.contains("'way"), "{error:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{entries:?}");
    }
}

#[test]
fn extensions_are_read_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut builder = Builder::new(Vec::new());
    let mut header = raw(EntryType::Regular, b"", b"", 1);
    builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    assert_eq!(unpack_into(dir.path(), &archive).unwrap(), 1);
    assert_eq!(fs::read_to_string(dir.path().join(long)).unwrap(), "x");

    // pax: `length key=value\n`, the length its own digits included.
    let records = b"24 path=named-by-record\n9 size=2\n";
    let mut builder = Builder::new(Vec::new());
    let head = raw(EntryType::XHeader, b"x", b"", records.len() as u64);
    builder.append(&head, &records[..]).unwrap();
    let mut header = raw(EntryType::Regular, b"short", b"", 2);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(archive.len() - 1024);
    archive.extend([&b"hi"[..], &[0; 510], &[0; 1024]].concat());
    assert_eq!(unpack_into(dir.path(), &archive).unwrap(), 1);
    let named = dir.path().join("named-by-record");
    assert_eq!(fs::read_to_string(named).unwrap(), "hi");

    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let endless = raw(kind, b"x", b"", 1 << 40);
        let error = unpack_into(dir.path(), endless.as_bytes()).unwrap_err();
        assert!(error.message.contains("longer than"), "{error:?}");
    }
}

#[test]
fn devices_in_the_way_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o600)).unwrap();
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
    let archive = archive(&[(EntryType::Regular, "pipe", "a file")]);
    unpack_into(dir.path(), &archive).unwrap();
    assert_eq!(fs::read_to_string(pipe).unwrap(), "a file");
}

fn kinds() -> impl Strategy<Value = EntryType> {
    prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever names and links, in whatever order, and wherever links lead: nothing outside is
    /// made or changed.
    #[test]
    fn no_order_of_entries_leaves_the_directory(
        entries in prop::collection::vec(
            (
                kinds(),
                prop::collection::vec(prop::sample::select(vec!["a", "b", "..", ".", ""]), 1..5),
                prop::collection::vec(prop::sample::select(vec!["a", "b", "..", ".", ""]), 1..5),
                any::<bool>(),
            ),
            1..8,
        ),
    ) {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("one/target");
        fs::create_dir_all(&dir).unwrap();
        fs::write(above.path().join("one/a"), "untouched").unwrap();
        // Each in an archive of its own, since one that is refused ends its archive.
        for (kind, name, link, is_absolute) in &entries {
            let (name, mut link) = (name.join("/"), link.join("/"));
            if *is_absolute {
                link = format!("{}/one/{link}", above.path().display());
            }
            if name.is_empty() {
                continue;
            }
            let link = match kind {
                EntryType::Regular | EntryType::Directory => String::new(),
                _ => link,
            };
            unpack_into(&dir, &archive(&[(*kind, &name, &link)])).ok();
        }
        let outside: Vec<_> = tree(above.path())
            .into_iter()
            .filter(|(name, _)| !name.starts_with("one/target/"))
            .collect();
        let expected = [("one", "/"), ("one/a", "untouched"), ("one/target", "/")]
            .map(|(name, what)| (name.to_owned(), what.to_owned()));
        prop_assert_eq!(outside, expected);
        prop_assert_eq!(above.path().join("one/a").metadata().unwrap().nlink(), 1);
    }

    #[test]
    fn no_bytes_confuse_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let dir = tempfile::tempdir().unwrap();
        unpack_into(dir.path(), &bytes).ok();
    }
}
