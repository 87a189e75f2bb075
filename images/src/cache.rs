//! Where products are kept: one directory each, named by the hash of its recipe.
//!
//! ```text
//! <cache>/<kind>/<key>/…          a finished product
//! <cache>/building/<kind>-<key>/  one being built; renamed to the above when it is whole
//! <cache>/locks/<kind>-<key>      flock()ed while it is built or removed
//! ```

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{AtPath, BuildError};
use crate::progress::{self, Event, Progress};
use crate::recipe::Recipe;

/// How many products of a kind stay: the present one, and a few that a switch back to an
/// older version of our programs would need again.
const KEPT_PER_KIND: usize = 4;

/// The folder of finished products.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// A cache in `dir`, which is made when first needed.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The user's cache: `$XDG_CACHE_HOME/wrenn`, by default `~/.cache/wrenn`.
    ///
    /// # Errors
    /// Neither variable is set.
    pub fn of_user() -> Result<Self, BuildError> {
        let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
        from("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| from("HOME").map(|home| Path::new(&home).join(".cache")))
            .map(|dir| Self::at(dir.join("wrenn")))
            .ok_or(BuildError::NoCacheHome)
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The finished product of `recipe`, if there is one.
    #[must_use]
    pub fn finished(&self, recipe: &Recipe) -> Option<PathBuf> {
        Some(self.place_of(recipe)).filter(|place| place.is_dir())
    }

    /// Returns the product of `recipe`, calling `build` with an empty directory if it is not
    /// there yet. A second process that wants the same product waits for the first.
    ///
    /// # Errors
    /// The cache cannot be written, or `build` fails.
    pub fn product(
        &self,
        recipe: &Recipe,
        step: &str,
        progress: &dyn Progress,
        build: impl FnOnce(&Path) -> Result<(), BuildError>,
    ) -> Result<PathBuf, BuildError> {
        if let Some(place) = self.reuse(recipe, step, progress) {
            return Ok(place);
        }
        let lock = self.lock(recipe.kind(), &recipe.key())?;
        // Another process may have built it while this one waited for the lock.
        if let Some(place) = self.reuse(recipe, step, progress) {
            return Ok(place);
        }
        let place = self.place_of(recipe);
        let aside = self
            .dir
            .join("building")
            .join(format!("{}-{}", recipe.kind(), recipe.key()));
        progress::step(progress, step, || {
            // Holding the lock proves that whoever left this behind is gone.
            remove_tree(&aside)?;
            fs::create_dir_all(&aside).at("create", &aside)?;
            if let Err(error) = build(&aside) {
                // The build's own error says more than a failed clean-up; the next build
                // of this product clears the place first anyway.
                remove_tree(&aside).ok();
                return Err(error);
            }
            let parent = self.dir.join(recipe.kind());
            fs::create_dir_all(&parent).at("create", &parent)?;
            fs::rename(&aside, &place).at("rename the finished product to", &place)
        })?;
        drop(lock);
        self.prune(recipe.kind(), &place)?;
        Ok(place)
    }

    fn reuse(&self, recipe: &Recipe, step: &str, progress: &dyn Progress) -> Option<PathBuf> {
        let place = self.finished(recipe)?;
        // The time of last use decides what is pruned. A cache that cannot be touched is
        // still good for reading.
        let now = FileTimes::new().set_modified(SystemTime::now());
        File::open(&place).and_then(|dir| dir.set_times(now)).ok();
        progress.report(Event::Reused { step });
        Some(place)
    }

    fn place_of(&self, recipe: &Recipe) -> PathBuf {
        self.dir.join(recipe.kind()).join(recipe.key())
    }

    fn lock(&self, kind: &str, key: &str) -> Result<Flock<File>, BuildError> {
        let (path, file) = self.lock_file(kind, key)?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| BuildError::file("lock", &path, errno.into()))
    }

    fn lock_file(&self, kind: &str, key: &str) -> Result<(PathBuf, File), BuildError> {
        let dir = self.dir.join("locks");
        fs::create_dir_all(&dir).at("create", &dir)?;
        let path = dir.join(format!("{kind}-{key}"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .at("open", &path)?;
        Ok((path, file))
    }

    /// Removes the products of this kind that were not used for longest. One that is locked
    /// is being built, and stays.
    fn prune(&self, kind: &str, fresh: &Path) -> Result<(), BuildError> {
        let parent = self.dir.join(kind);
        let mut products: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&parent).at("list", &parent)? {
            let path = entry.at("list", &parent)?.path();
            if path == fresh {
                continue;
            }
            // One that vanished meanwhile was pruned by somebody else.
            if let Ok(used) = path.metadata().and_then(|metadata| metadata.modified()) {
                products.push((used, path));
            }
        }
        products.sort();
        let excess = (products.len() + 1).saturating_sub(KEPT_PER_KIND);
        for (_, path) in products.into_iter().take(excess) {
            let Some(key) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let (_, file) = self.lock_file(kind, key)?;
            if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes a directory with all in it; that it is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), BuildError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BuildError::file("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::progress::Silent;

    struct Recorder(Mutex<Vec<String>>);

    impl Progress for Recorder {
        fn report(&self, event: Event<'_>) {
            let word = match event {
                Event::Started { step } => format!("started {step}"),
                Event::Reused { step } => format!("reused {step}"),
                Event::Finished { step, .. } => format!("finished {step}"),
                Event::Failed { step } => format!("failed {step}"),
            };
            self.0.lock().unwrap().push(word);
        }
    }

    fn failure() -> BuildError {
        BuildError::NoPackage { name: "x".into() }
    }

    #[test]
    fn second_call_reuses() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let recipe = Recipe::new("thing", 1);
        let recorder = Recorder(Mutex::default());
        let build = |place: &Path| {
            fs::write(place.join("file"), "x").unwrap();
            Ok(())
        };
        let one = cache.product(&recipe, "thing", &recorder, build).unwrap();
        let two = cache
            .product(&recipe, "thing", &recorder, |_| Err(failure()))
            .unwrap();
        assert_eq!(one, two);
        assert_eq!(fs::read_to_string(one.join("file")).unwrap(), "x");
        assert_eq!(
            *recorder.0.lock().unwrap(),
            ["started thing", "finished thing", "reused thing"]
        );
    }

    #[test]
    fn failed_build_leaves_nothing_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let recipe = Recipe::new("thing", 1);
        let failed = cache.product(&recipe, "thing", &Silent, |place| {
            fs::write(place.join("half"), "x").unwrap();
            Err(failure())
        });
        assert!(failed.is_err());
        assert!(cache.finished(&recipe).is_none());
        assert_eq!(
            fs::read_dir(dir.path().join("building")).unwrap().count(),
            0
        );
        let place = cache
            .product(&recipe, "thing", &Silent, |_| Ok(()))
            .unwrap();
        assert_eq!(fs::read_dir(place).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_build_left_is_not_built_upon() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let recipe = Recipe::new("thing", 1);
        let aside = dir.path().join(format!("building/thing-{}", recipe.key()));
        fs::create_dir_all(&aside).unwrap();
        fs::write(aside.join("rubbish"), "x").unwrap();
        let place = cache
            .product(&recipe, "thing", &Silent, |_| Ok(()))
            .unwrap();
        assert!(!place.join("rubbish").exists());
    }

    #[test]
    fn concurrent_builders_build_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let recipe = Recipe::new("thing", 1);
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    cache
                        .product(&recipe, "thing", &Silent, |_| {
                            builds.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn only_a_few_old_products_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let mut last = PathBuf::new();
        for number in 0..10 {
            let recipe = Recipe::new("thing", 1).input("number", &number.to_string());
            last = cache
                .product(&recipe, "thing", &Silent, |_| Ok(()))
                .unwrap();
        }
        assert!(last.is_dir());
        assert_eq!(
            fs::read_dir(dir.path().join("thing")).unwrap().count(),
            KEPT_PER_KIND
        );
    }
}
