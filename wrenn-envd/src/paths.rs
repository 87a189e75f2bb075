//! Paths as requests write them.

use std::path::{Component, Path, PathBuf};

use crate::users::User;

/// An absolute, lexically clean path: `~` is the user's home, and a relative path
/// starts there. Symbolic links are left alone.
pub fn resolve(path: &str, user: &User) -> PathBuf {
    let path = path.trim_end_matches('\0');
    let joined = match path.strip_prefix('~') {
        Some("") => user.home.clone(),
        Some(rest) if rest.starts_with('/') => user.home.join(rest.trim_start_matches('/')),
        _ => user.home.join(path),
    };
    clean(&joined)
}

/// Resolves `.` and `..` by the text alone, as clients expect of the path they get back.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_as_a_shell_would() {
        let user = User {
            name: "user".into(),
            uid: 1,
            gid: 1,
            groups: vec![],
            home: "/home/user".into(),
            shell: "/bin/sh".into(),
        };
        for (asked, resolved) in [
            ("a/b", "/home/user/a/b"),
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/x", "/home/user/x"),
            ("~x", "/home/user/~x"),
            ("/etc//passwd", "/etc/passwd"),
            ("../../../etc/./x/..", "/etc"),
            ("/", "/"),
        ] {
            assert_eq!(resolve(asked, &user), PathBuf::from(resolved), "{asked}");
        }
    }
}
