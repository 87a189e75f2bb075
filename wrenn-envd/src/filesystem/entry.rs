//! What is known about one entry of a directory.

use std::fs::{self, FileType as FsType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use wrenn_proto::buffa_types::google::protobuf::Timestamp;
use wrenn_proto::filesystem::{EntryInfo, FileType};

use super::metadata;
use crate::users::Names;

/// Describes the entry itself: of a symbolic link its own size, mode and owner, the
/// type of what it leads to, and where it leads.
pub fn describe(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let own = fs::symlink_metadata(path)?;
    let is_symlink = own.file_type().is_symlink();
    let (kind, symlink_target) = if is_symlink {
        let target = fs::canonicalize(path).or_else(|_| fs::read_link(path)).ok();
        // A link that leads nowhere is still an entry.
        let kind = fs::metadata(path).map_or(FileType::Symlink, |there| kind(there.file_type()));
        (
            kind,
            target.map(|target| target.to_string_lossy().into_owned()),
        )
    } else {
        (kind(own.file_type()), None)
    };
    let name = path
        .file_name()
        .map_or_else(|| "/".into(), |name| name.to_string_lossy());
    Ok(EntryInfo {
        name: name.into_owned(),
        r#type: kind.into(),
        path: path.to_string_lossy().into_owned(),
        size: i64::try_from(own.len()).unwrap_or(i64::MAX),
        mode: own.permissions().mode() & 0o7777,
        permissions: permissions(&own),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        modified_time: modified(&own).into(),
        symlink_target,
        metadata: metadata::read(path).into_iter().collect(),
        is_symlink,
    })
}

fn kind(file_type: FsType) -> FileType {
    if file_type.is_dir() {
        FileType::Directory
    } else if file_type.is_symlink() {
        FileType::Symlink
    } else {
        // Devices, pipes and sockets can be opened by name like files.
        FileType::File
    }
}

fn modified(metadata: &Metadata) -> Timestamp {
    Timestamp {
        seconds: metadata.mtime(),
        nanos: i32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        ..Timestamp::default()
    }
}

/// As `ls -l` writes it.
fn permissions(metadata: &Metadata) -> String {
    let file_type = metadata.file_type();
    let mode = metadata.permissions().mode();
    let first = match file_type {
        t if t.is_dir() => 'd',
        t if t.is_symlink() => 'l',
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        t if t.is_fifo() => 'p',
        t if t.is_socket() => 's',
        _ => '-',
    };
    let mut text = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(path: &Path) -> EntryInfo {
        describe(path, &Names::default()).unwrap()
    }

    #[test]
    fn describes_files_directories_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
        let entry = described(&file);
        assert_eq!(
            (entry.name.as_str(), entry.size, entry.mode),
            ("file", 5, 0o4751)
        );
        assert_eq!(entry.permissions, "-rwsr-x--x");
        assert_eq!(entry.r#type.as_known(), Some(FileType::File));

        let link = dir.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        let entry = described(&link);
        assert!(entry.is_symlink && entry.permissions.starts_with('l'));
        assert_eq!(entry.r#type.as_known(), Some(FileType::File));
        assert!(entry.symlink_target.unwrap().ends_with("/file"));

        fs::remove_file(&file).unwrap();
        let entry = described(&link);
        assert_eq!(entry.r#type.as_known(), Some(FileType::Symlink));
        assert_eq!(entry.symlink_target.as_deref(), Some("file"));
        assert_eq!(
            described(dir.path()).r#type.as_known(),
            Some(FileType::Directory)
        );
        assert_eq!(described(Path::new("/")).name, "/");
    }
}
