//! The processes of this daemon, running and just ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::hub::Budget;
use super::owner::Process;

/// How a request names a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Pid(u32),
    Tag(String),
}

#[derive(Debug)]
pub struct ProcessTable {
    processes: Mutex<HashMap<u32, Arc<Process>>>,
    /// The memory that the rings of all of them may take.
    budget: Arc<Budget>,
}

impl Default for ProcessTable {
    fn default() -> Self {
        Self {
            processes: Mutex::default(),
            budget: Budget::of_this_guest(),
        }
    }
}

impl ProcessTable {
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u32, Arc<Process>>> {
        self.processes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn insert(&self, process: Arc<Process>) {
        self.table().insert(process.pid, process);
    }

    /// Forgets a process, unless its number is another's by now.
    pub(super) fn remove(&self, process: &Arc<Process>) {
        let mut table = self.table();
        if table
            .get(&process.pid)
            .is_some_and(|found| Arc::ptr_eq(found, process))
        {
            table.remove(&process.pid);
        }
    }

    /// Finds a process, ended or not. Of several with one tag a running one is meant.
    pub fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        let table = self.table();
        match selector {
            Selector::Pid(pid) => table.get(pid).cloned(),
            Selector::Tag(tag) => table
                .values()
                .filter(|process| process.order.tag.as_ref() == Some(tag))
                .max_by_key(|process| process.is_running())
                .cloned(),
        }
    }

    pub fn find_running(&self, selector: &Selector) -> Option<Arc<Process>> {
        self.find(selector).filter(|process| process.is_running())
    }

    /// All that run, by pid.
    pub fn running(&self) -> Vec<Arc<Process>> {
        let mut running: Vec<_> = self
            .table()
            .values()
            .filter(|process| process.is_running())
            .cloned()
            .collect();
        running.sort_by_key(|process| process.pid);
        running
    }
}
