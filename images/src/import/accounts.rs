//! The users of a root file system: who is there, and `user` where nobody is.
//!
//! Source: passwd(5), group(5), shadow(5).

use std::collections::HashSet;

/// The user that sandboxes run commands as, unless told otherwise.
pub(super) const USER: &str = "user";
/// Where `user` is at home.
pub(super) const HOME: &str = "/home/user";
/// The number of `user`, where it is free.
const USER_NUMBER: u32 = 1000;

/// The files that list users. Lines are kept byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) passwd: Vec<u8>,
    pub(super) group: Vec<u8>,
    pub(super) shadow: Option<Vec<u8>>,
}

/// A user that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Accounts {
    /// Adds `user` with its group, unless there is one.
    pub(super) fn add_user(&mut self, shell: &str) -> Option<NewUser> {
        if self.passwd.is_empty() {
            push(&mut self.passwd, &format!("root:x:0:0:root:/root:{shell}"));
            if self.group.is_empty() {
                push(&mut self.group, "root:x:0:");
            }
        }
        if has(&self.passwd, USER) {
            return None;
        }
        let uid = self.free_number();
        let group = line_of(&self.group, USER).and_then(|line| number(&line));
        let gid = group.unwrap_or_else(|| {
            push(&mut self.group, &format!("{USER}:x:{uid}:"));
            uid
        });
        push(
            &mut self.passwd,
            &format!("{USER}:x:{uid}:{gid}:{USER}:{HOME}:{shell}"),
        );
        if let Some(shadow) = &mut self.shadow
            && !has(shadow, USER)
        {
            push(shadow, &format!("{USER}:*:19000:0:99999:7:::"));
        }
        Some(NewUser { uid, gid })
    }

    /// A number that neither a user nor a group has.
    fn free_number(&self) -> u32 {
        let taken: HashSet<u32> = lines(&self.passwd)
            .chain(lines(&self.group))
            .filter_map(number)
            .collect();
        (USER_NUMBER..u32::MAX)
            .find(|number| !taken.contains(number))
            .unwrap_or(USER_NUMBER)
    }

    /// The name of the user that an image means by `name`, `number`, or either with a group
    /// after a colon.
    pub(super) fn user_named(&self, text: &str) -> Option<String> {
        let user = text.split(':').next().unwrap_or(text);
        if has(&self.passwd, user) {
            return Some(user.to_owned());
        }
        let wanted = user.parse().ok()?;
        let line = lines(&self.passwd).find(|line| number(line) == Some(wanted))?;
        let name = line.split(|byte| *byte == b':').next()?;
        String::from_utf8(name.to_vec()).ok()
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

fn line_of(file: &[u8], name: &str) -> Option<Vec<u8>> {
    lines(file)
        .find(|line| line.split(|byte| *byte == b':').next() == Some(name.as_bytes()))
        .map(<[u8]>::to_vec)
}

fn has(file: &[u8], name: &str) -> bool {
    !name.is_empty() && line_of(file, name).is_some()
}

/// The number of a user or a group: the third field of both.
fn number(line: &[u8]) -> Option<u32> {
    let text = line.split(|byte| *byte == b':').nth(2)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn push(file: &mut Vec<u8>, line: &str) {
    if !file.is_empty() && !file.ends_with(b"\n") {
        file.push(b'\n');
    }
    file.extend_from_slice(line.as_bytes());
    file.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(passwd: &str, group: &str) -> Accounts {
        Accounts {
            passwd: passwd.into(),
            group: group.into(),
            shadow: Some(b"root:*:1::::::".to_vec()),
        }
    }

    #[test]
    fn user_is_added_where_missing_and_only_there() {
        let mut accounts = accounts("root:x:0:0:root:/root:/bin/sh", "root:x:0:");
        let added = accounts.add_user("/bin/bash");
        assert_eq!(
            added,
            Some(NewUser {
                uid: 1000,
                gid: 1000
            })
        );
        assert_eq!(
            String::from_utf8_lossy(&accounts.passwd),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/bash\n"
        );
        assert!(
            accounts
                .shadow
                .clone()
                .unwrap()
                .ends_with(b"\nuser:*:19000:0:99999:7:::\n")
        );
        let before = accounts.clone();
        assert_eq!(accounts.add_user("/bin/sh"), None);
        assert_eq!(accounts, before);
    }

    #[test]
    fn taken_numbers_are_passed_over() {
        let mut accounts = accounts("node:x:1000:1000::/srv/node:/bin/sh\n", "node:x:1000:\n");
        let added = accounts.add_user("/bin/sh");
        assert_eq!(
            added,
            Some(NewUser {
                uid: 1001,
                gid: 1001
            })
        );
    }

    #[test]
    fn an_image_without_users_gets_root_too() {
        let mut accounts = Accounts::default();
        accounts.add_user("/bin/sh");
        assert!(accounts.passwd.starts_with(b"root:x:0:0:"));
        assert!(accounts.shadow.is_none());
    }

    #[test]
    fn images_name_users_in_several_ways() {
        let accounts = accounts("app:x:42:42::/:/bin/sh\n", "");
        for text in ["app", "42", "42:42", "app:staff"] {
            assert_eq!(accounts.user_named(text).as_deref(), Some("app"), "{text}");
        }
        for text in ["", "43", "ap", ":42"] {
            assert_eq!(accounts.user_named(text), None, "{text}");
        }
    }
}
