//! Changing an ext4 image without mounting it.
//!
//! debugfs splits its commands at spaces and obeys whatever a line says, so that no name
//! that somebody else chose may ever stand in one. It works in a folder of ours, with files
//! under names of ours.

use std::fs;
use std::path::{Path, PathBuf};

use super::ext4::{fixed_time, set_times};
use crate::command::Program;
use crate::error::{AtPath, BuildError};
use crate::recipe::sha256_of_file;

/// The longest file that is read out of an image; those that are wanted have kilobytes.
const LONGEST: u64 = 4 << 20;

/// An ext4 image that is worked on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Debugfs<'a> {
    image: &'a Path,
}

impl<'a> Debugfs<'a> {
    /// The image `image`. Its folder must be ours.
    pub(crate) fn of(image: &'a Path) -> Self {
        Self { image }
    }

    /// Writes the program `program` into the image as `path`, owned by root.
    ///
    /// # Errors
    /// debugfs is missing or fails, or the image has no room.
    pub(crate) fn write_program(self, program: &Path, path: &str) -> Result<(), BuildError> {
        let stripped = crate::strip::program(program).at("read", program)?;
        self.replace(path, &stripped, 0o755)
    }

    /// Writes a file of root's, in the place of what may be there.
    ///
    /// # Errors
    /// As [`Self::write_program`].
    pub(crate) fn replace(self, path: &str, contents: &[u8], mode: u32) -> Result<(), BuildError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (source, check) = (self.beside("program"), self.beside("check"));
        fs::write(&source, contents).at("write", &source)?;
        let script = format!(
            "cd {folder}/\nrm {name}\nwrite program {name}\nsif {name} mode 0100{mode:03o}\n\
             sif {name} uid 0\nsif {name} gid 0\n{}dump {name} check\n",
            set_times(name) + &set_times("."),
        );
        let result = self.run(&script);
        // debugfs reports success whatever happens, so only reading back proves the write.
        let whole = sha256_of_file(&check).ok() == sha256_of_file(&source).ok() && check.exists();
        for leftover in [&source, &check] {
            remove(leftover)?;
        }
        result?;
        if whole {
            Ok(())
        } else {
            Err(BuildError::NotInjected {
                path: path.to_owned(),
                image: self.image.to_path_buf(),
            })
        }
    }

    /// Makes the directory `path` unless something is there; the one above it must be.
    ///
    /// # Errors
    /// debugfs is missing or fails.
    pub(crate) fn make_directory(self, path: &str, mode: u32) -> Result<(), BuildError> {
        if !self.exists(path)? {
            let times = set_times(path);
            self.run(&format!(
                "mkdir {path}\nsif {path} mode 040{mode:03o}\n{times}"
            ))?;
        }
        Ok(())
    }

    /// Gives what is at `path` to a user and a group.
    ///
    /// # Errors
    /// debugfs is missing or fails.
    pub(crate) fn own(self, path: &str, uid: u32, gid: u32) -> Result<(), BuildError> {
        self.run(&format!("sif {path} uid {uid}\nsif {path} gid {gid}\n"))
    }

    /// Whether anything is at `path`.
    ///
    /// # Errors
    /// debugfs is missing or fails.
    pub(crate) fn exists(self, path: &str) -> Result<bool, BuildError> {
        Ok(self.stat(path)?.contains("Inode:"))
    }

    /// Reads the file at `path`; nothing if there is no regular file.
    ///
    /// # Errors
    /// debugfs is missing or fails, or the file is far too long.
    pub(crate) fn read(self, path: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let stat = self.stat(path)?;
        if !stat.contains("Type: regular") {
            return Ok(None);
        }
        let size = stat
            .split_once("Size:")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
        if size.is_none_or(|size| size > LONGEST) {
            return Err(BuildError::TooLong {
                path: path.to_owned(),
                image: self.image.to_path_buf(),
            });
        }
        let out = self.beside("check");
        self.run(&format!("dump {path} check\n"))?;
        let contents = fs::read(&out).at("read", &out)?;
        remove(&out)?;
        Ok(Some(contents))
    }

    fn stat(self, path: &str) -> Result<String, BuildError> {
        let shown = fixed_time(Program::new("debugfs"))
            .args(["-R", &format!("stat {path}")])
            .arg(self.image)
            .run()?;
        Ok(String::from_utf8_lossy(&shown).into_owned())
    }

    /// Runs a list of commands on the image, in its folder.
    pub(super) fn run(self, script: &str) -> Result<(), BuildError> {
        let commands = self.beside("commands");
        fs::write(&commands, script).at("write", &commands)?;
        let run = fixed_time(Program::new("debugfs"))
            .args(["-w", "-f", "commands"])
            .arg(self.image)
            .current_dir(self.folder())
            .run();
        fs::remove_file(&commands).at("remove", &commands)?;
        run?;
        Ok(())
    }

    fn folder(self) -> &'a Path {
        self.image.parent().unwrap_or(Path::new("."))
    }

    fn beside(self, name: &str) -> PathBuf {
        self.folder().join(name)
    }
}

fn remove(path: &Path) -> Result<(), BuildError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BuildError::file("remove", path, error))
        }
        _ => Ok(()),
    }
}
