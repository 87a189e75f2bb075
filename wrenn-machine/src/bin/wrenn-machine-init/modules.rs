//! Loads the modules that the initramfs lists, in its order.

use std::fs::{self, File};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::boot::{At, BootError};
use crate::kernel_log;

const FOLDER: &str = "/modules";

struct Module {
    name: String,
    file: File,
}

/// Modules on their way into the kernel, loaded by a thread of their own: most are for later,
/// and the disks need only the first few.
pub(crate) struct Loading {
    thread: JoinHandle<()>,
    loaded: Receiver<String>,
}

impl Loading {
    /// Opens all modules, so that the root may change, and starts loading them.
    pub(crate) fn start() -> Result<Self, BootError> {
        let list = format!("{FOLDER}/load");
        let mut modules = Vec::new();
        for name in fs::read_to_string(&list).at("read", &list)?.lines() {
            let path = format!("{FOLDER}/{name}");
            let file = File::open(&path).at("open", &path)?;
            // Its memory is free again as soon as it is loaded and closed.
            fs::remove_file(&path).at("remove", &path)?;
            modules.push(Module {
                name: name.to_owned(),
                file,
            });
        }
        let (sender, loaded) = channel();
        Ok(Self {
            thread: thread::spawn(move || load_all(modules, &sender)),
            loaded,
        })
    }

    /// Waits until the module `name` is loaded. Returns at once when all are.
    pub(crate) fn wait_for(&self, name: &str) {
        let file = format!("{name}.ko");
        while self.loaded.recv().is_ok_and(|loaded| loaded != file) {}
    }

    /// Waits until all are loaded.
    pub(crate) fn finish(self) {
        while self.loaded.recv().is_ok() {}
        if self.thread.join().is_err() {
            kernel_log::say("loading modules was cut short");
        }
    }
}

/// Loads all modules. One that finds no hardware (a KVM of the other maker) is left out; what
/// is missing for good shows when somebody needs it, and its name stands in the log.
fn load_all(modules: Vec<Module>, loaded: &Sender<String>) {
    for Module { name, file } in modules {
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EEXIST) if name.starts_with("kvm") => {}
            Err(errno) => kernel_log::say(&format!("module {name} does not load: {errno}")),
        }
        // Nobody may be waiting for it any more.
        loaded.send(name).ok();
    }
}
