//! Which builds are needed, and removing those that are not.
//!
//! Nobody counts: who needs a build is derived each time from what is on the disk. A build
//! needs those in its header's table. The caller says which builds its sandboxes and
//! templates name, from their own records. And who writes or reads a build right now holds
//! a share of its lock.
//!
//! ```text
//! gc    first look: what nobody needs                 ─▶ candidates
//!       take their locks alone; who cannot be locked is in use
//!       second look, with the locks held: what nobody needs now ─▶ removed, children first
//! ```
//!
//! The second look is what makes it safe. A record that names a build is written while its
//! writer still holds the build open; so when a candidate's lock could be had, every record
//! that names it is there to be seen. What is killed between two removals leaves a chain
//! without its youngest builds, which are garbage like the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tracing::{info, warn};

use super::file::FileError;
use super::id::BuildId;
use super::pin::Pin;
use super::store::{BuildStore, ReadHeadError, remove_moved};
use crate::SandboxId;

/// Builds that are locked and looked at together: each lock is an open descriptor.
const BATCH: usize = 256;

/// Who needs a build.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Another build, whose memory comes from it in part.
    Build(BuildId),
    /// A sandbox that is paused, or was resumed from it and still runs.
    Sandbox(SandboxId),
    /// A template.
    Template(String),
    /// A process that reads or writes it at this moment.
    Process,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(id) => write!(f, "build {id}"),
            Self::Sandbox(id) => write!(f, "sandbox {id}"),
            Self::Template(name) => write!(f, "template {name}"),
            Self::Process => f.write_str("a running process"),
        }
    }
}

/// A record outside of the store that names a build.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The build.
    pub build: BuildId,
    /// Who names it.
    pub holder: Holder,
}

/// What a caller's search for references fails with.
pub type ReferencesError = Box<dyn std::error::Error + Send + Sync>;

/// Why a build was not removed.
#[derive(Debug, thiserror::Error)]
pub enum DeleteBuildError {
    /// There is none.
    #[error("there is no build {0}")]
    Unknown(BuildId),
    /// It is needed.
    #[error("build {id} is needed by {}", list(.holders))]
    InUse {
        /// The build.
        id: BuildId,
        /// Who needs it.
        holders: Vec<Holder>,
    },
    /// What needs it cannot be found out.
    #[error("who needs which build cannot be found out, so none is removed")]
    Look(#[from] LookError),
    /// It cannot be removed.
    #[error("the build cannot be removed")]
    File(#[from] FileError),
}

/// Why garbage was not removed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// What is needed cannot be found out.
    #[error("who needs which build cannot be found out, so none is removed")]
    Look(#[from] LookError),
    /// A build cannot be removed.
    #[error("garbage cannot be removed")]
    File(#[from] FileError),
}

/// Why nobody can say who needs which build.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The builds cannot be listed.
    #[error("the builds cannot be listed")]
    List(#[from] FileError),
    /// A build that is needed is damaged, and it is unknown what it needs itself.
    #[error("build {id} is needed, and what it needs itself cannot be read")]
    Head {
        /// The build.
        id: BuildId,
        /// Why.
        #[source]
        source: ReadHeadError,
    },
    /// The records of sandboxes or templates cannot be read.
    #[error("the records that name builds cannot be read")]
    References(#[source] ReferencesError),
}

fn list(holders: &[Holder]) -> String {
    let names: Vec<String> = holders.iter().map(Holder::to_string).collect();
    names.join(", ")
}

impl BuildStore {
    /// Removes a build that nobody needs.
    ///
    /// `references` reads the records that name builds. It is called while the build is
    /// locked, and must read them then.
    ///
    /// # Errors
    /// When somebody needs it, with the list of who; when it is not there; when it cannot be
    /// found out who needs it.
    pub fn delete(
        &self,
        id: &BuildId,
        references: impl Fn() -> Result<Vec<Reference>, ReferencesError>,
    ) -> Result<(), DeleteBuildError> {
        let directory = self.directory(id);
        let alone = Pin::exclusive(&directory)?;
        if alone.is_none() && !directory.is_dir() {
            return Err(DeleteBuildError::Unknown(id.clone()));
        }
        let named = references().map_err(LookError::References)?;
        let mut holders: Vec<Holder> = named
            .into_iter()
            .filter(|reference| reference.build == *id)
            .map(|reference| reference.holder)
            .collect();
        let mut heads = Heads::default();
        for other in self.list().map_err(LookError::List)? {
            if other != *id && heads.needs(self, &other)?.contains(id) {
                holders.push(Holder::Build(other));
            }
        }
        match alone {
            Some(_alone) if holders.is_empty() => {
                remove_moved(&self.move_away(id)?);
                Ok(())
            }
            Some(_) => Err(in_use(id, holders)),
            None => {
                holders.push(Holder::Process);
                Err(in_use(id, holders))
            }
        }
    }

    /// Removes all builds that nobody needs, and returns their ids. Several may collect at
    /// once; then one leaves to the other what that one has locked.
    ///
    /// `references` reads the records that name builds: of sandboxes that are paused, of
    /// those that run from a snapshot, of templates. It is called more than once, and must
    /// read them anew each time.
    ///
    /// # Errors
    /// When it cannot be found out what is needed, then nothing more is removed; when
    /// something cannot be removed.
    pub fn gc(
        &self,
        references: impl Fn() -> Result<Vec<Reference>, ReferencesError>,
    ) -> Result<Vec<BuildId>, CollectError> {
        let mut heads = Heads::default();
        let mut collected = Vec::new();
        let candidates = self.garbage(&mut heads, &references, &BTreeSet::new())?;
        for batch in candidates.chunks(BATCH) {
            let mut locked = BTreeMap::new();
            for id in batch {
                if let Some(alone) = Pin::exclusive(&self.directory(id))? {
                    locked.insert(id.clone(), alone);
                }
            }
            let existing: BTreeSet<BuildId> =
                self.list().map_err(LookError::List)?.into_iter().collect();
            let in_use = existing
                .into_iter()
                .filter(|id| !locked.contains_key(id))
                .collect();
            let mut moved = Vec::new();
            for id in self.garbage(&mut heads, &references, &in_use)? {
                if let Some(alone) = locked.remove(&id) {
                    moved.push((self.move_away(&id)?, alone));
                    info!(build_id = %id, "removed a build that nobody needs");
                    collected.push(id);
                }
            }
            // Removing large files takes a while, for which nobody has to wait who wants
            // to open one of those that turned out to be needed.
            drop(locked);
            moved.iter().for_each(|(aside, _alone)| remove_moved(aside));
        }
        Ok(collected)
    }

    /// Builds that nobody needs, children before those that they need. Those `in_use` are
    /// needed besides those that records name.
    fn garbage(
        &self,
        heads: &mut Heads,
        references: impl Fn() -> Result<Vec<Reference>, ReferencesError>,
        in_use: &BTreeSet<BuildId>,
    ) -> Result<Vec<BuildId>, LookError> {
        let named = references().map_err(LookError::References)?;
        let existing: BTreeSet<BuildId> = self.list()?.into_iter().collect();
        let mut needed: BTreeSet<BuildId> = BTreeSet::new();
        let mut to_visit: Vec<BuildId> = in_use.iter().cloned().collect();
        to_visit.extend(named.into_iter().map(|reference| reference.build));
        while let Some(id) = to_visit.pop() {
            if !existing.contains(&id) {
                warn!(build_id = %id, "a build that is needed is not there");
            } else if needed.insert(id.clone()) {
                to_visit.extend(heads.needs(self, &id)?.iter().cloned());
            }
        }
        let mut garbage: Vec<BuildId> = existing.difference(&needed).cloned().collect();
        garbage.sort_by_key(|id| std::cmp::Reverse(heads.generation(self, id)));
        Ok(garbage)
    }
}

fn in_use(id: &BuildId, mut holders: Vec<Holder>) -> DeleteBuildError {
    holders.sort();
    DeleteBuildError::InUse {
        id: id.clone(),
        holders,
    }
}

/// What each build needs, read once: a build never changes.
#[derive(Debug, Default)]
struct Heads(BTreeMap<BuildId, (u32, Vec<BuildId>)>);

impl Heads {
    fn needs(&mut self, store: &BuildStore, id: &BuildId) -> Result<&[BuildId], LookError> {
        match self.read(store, id) {
            // It was removed since it was listed, so it needs nothing.
            Err(ReadHeadError::File(error))
                if error.is_missing() && !store.directory(id).exists() =>
            {
                Ok(&[])
            }
            Err(source) => Err(LookError::Head {
                id: id.clone(),
                source,
            }),
            Ok(()) => Ok(self.0.get(id).map_or(&[], |(_, needs)| needs)),
        }
    }

    /// How deep a build is; one that is damaged counts as the deepest and goes first.
    fn generation(&mut self, store: &BuildStore, id: &BuildId) -> u32 {
        let known = self.read(store, id);
        known
            .ok()
            .and_then(|()| self.0.get(id))
            .map_or(u32::MAX, |(generation, _)| *generation)
    }

    fn read(&mut self, store: &BuildStore, id: &BuildId) -> Result<(), ReadHeadError> {
        if !self.0.contains_key(id) {
            let head = store.head(id)?;
            let needs = head.needs().cloned().collect();
            self.0.insert(id.clone(), (head.generation, needs));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "garbage_tests.rs"]
mod tests;
