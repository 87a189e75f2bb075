//! Teams, API keys and sessions. Secrets are stored as SHA-256 digests: they are random, so a
//! slow hash would add nothing.

use sha2::{Digest as _, Sha256};
use wrenn_api::id::{KeyId, TeamId};

use super::database::args;
use super::{Micros, Store, StoreError, parse, sql};

/// A new API key, whose secret is shown once.
#[derive(Clone)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// The secret: `wrn_` and 40 hexadecimal digits.
    pub secret: String,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Who a credential stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) team: TeamId,
    pub(crate) expires_at: Option<Micros>,
}

/// The characters of a key that lists show.
const PREFIX_CHARS: usize = 8;

pub(super) fn digest(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// A secret of `bytes` random bytes, in hexadecimal.
pub(crate) fn random_secret(bytes: usize) -> String {
    let random: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
    hex(&random)
}

impl Store {
    /// The first team, which is made if there is none.
    pub(crate) async fn default_team(&self, now: Micros) -> Result<TeamId, StoreError> {
        let mut tx = self.database.begin().await?;
        if let Some(row) = tx.read_one(sql::TEAM_FIRST, args![]).await? {
            let id = row.text("id")?;
            return parse(&id, "id", &id);
        }
        let team = TeamId::random();
        tx.write(sql::TEAM_INSERT, args![team.as_str(), "default", now])
            .await?;
        tx.commit().await?;
        Ok(team)
    }

    /// Makes an API key.
    pub(crate) async fn create_key(
        &self,
        team: &TeamId,
        name: &str,
        now: Micros,
    ) -> Result<NewKey, StoreError> {
        let key = NewKey {
            id: KeyId::random(),
            secret: format!("wrn_{}", random_secret(20)),
        };
        let prefix: String = key.secret.chars().take(PREFIX_CHARS).collect();
        let arguments = args![
            key.id.as_str(),
            team.as_str(),
            name,
            prefix,
            digest(&key.secret),
            now
        ];
        self.database.write(sql::KEY_INSERT, arguments).await?;
        Ok(key)
    }

    /// Who an API key stands for.
    pub(crate) async fn key(&self, secret: &str) -> Result<Option<Credential>, StoreError> {
        let row = self
            .database
            .read_one(sql::KEY_BY_HASH, args![digest(secret)])
            .await?;
        row.map(|row| {
            Ok(Credential {
                team: parse(&row.text("id")?, "team_id", &row.text("team_id")?)?,
                expires_at: row.int_or_null("expires_at")?,
            })
        })
        .transpose()
    }

    /// Makes a session of a browser, and gives its secret.
    pub(crate) async fn create_session(
        &self,
        team: &TeamId,
        now: Micros,
        expires_at: Micros,
    ) -> Result<String, StoreError> {
        let secret = random_secret(32);
        self.database.write(sql::SESSION_EXPIRE, args![now]).await?;
        let arguments = args![digest(&secret), team.as_str(), now, expires_at];
        self.database.write(sql::SESSION_INSERT, arguments).await?;
        Ok(secret)
    }

    /// Who a session stands for.
    pub(crate) async fn session(&self, secret: &str) -> Result<Option<Credential>, StoreError> {
        let row = self
            .database
            .read_one(sql::SESSION_BY_HASH, args![digest(secret)])
            .await?;
        row.map(|row| {
            Ok(Credential {
                team: parse("session", "team_id", &row.text("team_id")?)?,
                expires_at: Some(row.int("expires_at")?),
            })
        })
        .transpose()
    }
}
