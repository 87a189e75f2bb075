//! Who a request acts as: the guest's own user database.
//!
//! The daemon is a static binary, so the C library's name services are not there for
//! it; `/etc/passwd` and `/etc/group` are read as they are. They are read again for
//! every request, because a user who was added a moment ago must be found.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// One line of the user database, with the groups that name the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub shell: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("cannot read the user database {path}")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("there is no user '{name}' in the sandbox")]
    Unknown { name: String },
}

impl User {
    /// Finds a user by name.
    pub fn lookup(name: &str) -> Result<Self, LookupError> {
        let passwd = read(PASSWD)?;
        // A guest without groups is odd but works.
        let group = read(GROUP).unwrap_or_default();
        Self::parse(&passwd, &group, name).ok_or_else(|| LookupError::Unknown {
            name: name.to_owned(),
        })
    }

    fn parse(passwd: &str, group: &str, name: &str) -> Option<Self> {
        let line = passwd
            .lines()
            .find_map(|line| PasswdLine::parse(line).filter(|l| l.name == name))?;
        let mut groups = vec![line.gid];
        for (gid, members) in group.lines().filter_map(parse_group) {
            if members.split(',').any(|member| member == name) && !groups.contains(&gid) {
                groups.push(gid);
            }
        }
        Some(Self {
            name: name.to_owned(),
            uid: line.uid,
            gid: line.gid,
            groups,
            home: PathBuf::from(if line.home.is_empty() { "/" } else { line.home }),
            shell: PathBuf::from(if line.shell.is_empty() {
                "/bin/sh"
            } else {
                line.shell
            }),
        })
    }
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        let shell = fields.next().unwrap_or_default();
        Some(Self {
            name,
            uid,
            gid,
            home,
            shell,
        })
    }
}

fn parse_group(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split(':');
    let gid = fields.nth(2)?.parse().ok()?;
    Some((gid, fields.next().unwrap_or_default()))
}

fn read(path: &'static str) -> Result<String, LookupError> {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|source| LookupError::Read { path, source })
}

/// Names of owners, read once for a whole listing.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// What the databases say now; what can't be read has no names.
    pub fn load() -> Self {
        Self::parse(
            &read(PASSWD).unwrap_or_default(),
            &read(GROUP).unwrap_or_default(),
        )
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let mut names = Self::default();
        for line in passwd.lines().filter_map(PasswdLine::parse) {
            names
                .users
                .entry(line.uid)
                .or_insert_with(|| line.name.to_owned());
        }
        for line in group.lines() {
            if let (Some(name), Some((gid, _))) = (line.split(':').next(), parse_group(line)) {
                names.groups.entry(gid).or_insert_with(|| name.to_owned());
            }
        }
        names
    }

    /// The user's name, or the number where there is none.
    pub fn user(&self, uid: u32) -> String {
        self.users
            .get(&uid)
            .cloned()
            .unwrap_or_else(|| uid.to_string())
    }

    /// The group's name, or the number where there is none.
    pub fn group(&self, gid: u32) -> String {
        self.groups
            .get(&gid)
            .cloned()
            .unwrap_or_else(|| gid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        user:x:1000:1000::/home/user:/bin/bash\n\
        bare:x:7:8::\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:user\nusers:x:100:other\n";

    #[test]
    fn finds_a_user_with_all_groups() {
        let user = User::parse(PASSWD, GROUP, "user").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1000));
        assert_eq!(user.groups, [1000, 27]);
        assert_eq!(user.home, PathBuf::from("/home/user"));
    }

    #[test]
    fn fills_in_what_a_line_leaves_out() {
        let user = User::parse(PASSWD, GROUP, "bare").unwrap();
        assert_eq!(user.home, PathBuf::from("/"));
        assert_eq!(user.shell, PathBuf::from("/bin/sh"));
    }

    #[test]
    fn does_not_invent_users() {
        assert_eq!(User::parse(PASSWD, GROUP, "broken line"), None);
        assert_eq!(User::parse(PASSWD, GROUP, ""), None);
    }

    #[test]
    fn names_owners_or_shows_their_numbers() {
        let names = Names::parse(PASSWD, GROUP);
        assert_eq!(names.user(1000), "user");
        assert_eq!(names.group(27), "sudo");
        assert_eq!(names.user(4711), "4711");
    }
}
