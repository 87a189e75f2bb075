//! What `/init` set, kept for the next daemon: one that dies and is started again must
//! not forget its token, or user code in the guest could give it another.
//!
//! A JSON object in a file that only root can read, on memory, so it is gone with the
//! guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::auth::AccessToken;
use crate::guest::Settings;

#[derive(Serialize, Deserialize)]
struct Saved {
    access_token: Option<String>,
    env: BTreeMap<String, String>,
    default_user: String,
    default_workdir: Option<String>,
}

/// Writes the settings aside and renames, so that a reader finds all or nothing new.
pub fn save(path: &Path, settings: &Settings) -> io::Result<()> {
    let saved = Saved {
        access_token: settings
            .access_token
            .as_ref()
            .map(|token| token.reveal().to_owned()),
        env: settings.env.clone(),
        default_user: settings.default_user.clone(),
        default_workdir: settings.default_workdir.clone(),
    };
    let aside = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(&serde_json::to_vec(&saved)?)?;
    fs::rename(&aside, path)
}

/// The settings of the daemon before; `None` if this is the first.
pub fn load(path: &Path) -> io::Result<Option<Settings>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let saved: Saved = serde_json::from_slice(&bytes)?;
    Ok(Some(Settings {
        access_token: saved.access_token.and_then(AccessToken::new),
        env: saved.env,
        default_user: saved.default_user,
        default_workdir: saved.default_workdir,
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_next_daemon_finds_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert!(load(&path).unwrap().is_none());
        let settings = Settings {
            access_token: AccessToken::new("secret"),
            env: [("A".to_owned(), "1".to_owned())].into(),
            default_user: "user".to_owned(),
            default_workdir: None,
        };
        save(&path, &settings).unwrap();
        let loaded = load(&path).unwrap().unwrap();
        assert_eq!(loaded.access_token, settings.access_token);
        assert_eq!(loaded.env, settings.env);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert!(load(&path).is_err());
    }
}
