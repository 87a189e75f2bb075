//! A guest that is nothing but memory, and a VMM that writes it as a VMM does.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wrenn_core::snapshot::{
    BuildDetails, BuildStore, Geometry, MemoryFile, Snapshot, WriteBuildError,
};

pub(crate) const PAGE: usize = 4096;

/// What the guest's memory should hold, and which pages it wrote since the last pause.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) memory: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Bytes of VM state; others after each pause.
    generation: u64,
}

impl Guest {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            memory: vec![0; pages * PAGE],
            dirty: BTreeSet::new(),
            generation: 0,
        }
    }

    /// Writes to a page. A value of 0 makes it zero.
    pub(crate) fn write(&mut self, page: usize, value: u8) {
        let page = page % (self.memory.len() / PAGE);
        let bytes = &mut self.memory[page * PAGE..][..PAGE];
        bytes.fill(0);
        // A page is other than zero from its last byte on, too.
        bytes[PAGE - 1] = value;
        if value % 2 == 1 {
            bytes.fill(value);
        }
        self.dirty.insert(page);
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::new(self.memory.len() as u64, PAGE as u64).unwrap()
    }

    /// Writes what a VMM writes for a snapshot: all of memory, zeros included, or the dirty
    /// pages, zeros included.
    pub(crate) fn write_memory(&self, path: &Path, diff: bool) {
        let file = File::create(path).unwrap();
        file.set_len(self.memory.len() as u64).unwrap();
        if diff {
            for page in &self.dirty {
                let bytes = &self.memory[page * PAGE..][..PAGE];
                file.write_all_at(bytes, (page * PAGE) as u64).unwrap();
            }
        } else {
            file.write_all_at(&self.memory, 0).unwrap();
        }
    }

    /// Takes a snapshot: a diff where there is a parent.
    pub(crate) fn pause(
        &mut self,
        store: &BuildStore,
        parent: Option<&Snapshot>,
    ) -> Result<Snapshot, WriteBuildError> {
        let writer = store.begin()?;
        self.write_memory(&writer.memory(), parent.is_some());
        std::fs::write(writer.vmstate(), self.generation.to_le_bytes()).unwrap();
        let memory = parent.map_or(MemoryFile::Full(self.geometry()), MemoryFile::Diff);
        let snapshot = writer.publish(memory, BuildDetails::default())?;
        self.dirty.clear();
        self.generation += 1;
        Ok(snapshot)
    }

    /// Panics unless a snapshot holds exactly this memory.
    pub(crate) fn assert_is_in(&self, snapshot: &Snapshot) {
        let mut found = vec![0xaa; self.memory.len()];
        snapshot.read_at(0, &mut found).unwrap();
        let differs = (0..self.memory.len()).find(|byte| found[*byte] != self.memory[*byte]);
        assert_eq!(differs.map(|byte| byte / PAGE), None, "a page differs");
    }
}
