//! The VM generation id: 16 random bytes in guest memory that change whenever the guest
//! starts again from an earlier moment. Linux 5.18 and later then reseeds its random
//! number generator, so that two guests from one snapshot do not share their secrets.

use std::io;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::layout;
use crate::memory::GuestMemory;
use crate::sys;

/// The id could not be renewed.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// No random bytes.
    #[error("cannot read random bytes for the VM generation id")]
    Random(#[source] io::Error),
    /// Guest memory is too small even for this.
    #[error("cannot write the VM generation id to guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
    /// The guest cannot be told.
    #[error("cannot raise the interrupt of the VM generation id")]
    Interrupt(#[source] io::Error),
}

/// The device: its interrupt line. The id itself lives in guest memory only.
#[derive(Debug)]
pub struct VmGeneration {
    interrupt: EventFd,
}

impl VmGeneration {
    /// A device that interrupts through `interrupt`.
    pub fn new(interrupt: EventFd) -> Self {
        Self { interrupt }
    }

    /// Writes a new id.
    ///
    /// # Errors
    /// If there are no random bytes, or guest memory is absurdly small.
    pub fn renew(&self, memory: &GuestMemory) -> Result<(), GenerationError> {
        let mut id = [0u8; 16];
        sys::random::fill(&mut id).map_err(GenerationError::Random)?;
        memory
            .write_slice(&id, GuestAddress(layout::VM_GENERATION_ID_START))
            .map_err(GenerationError::Write)
    }

    /// Tells the guest that the id has changed.
    ///
    /// # Errors
    /// If the interrupt cannot be raised.
    pub fn notify(&self) -> Result<(), GenerationError> {
        self.interrupt.write(1).map_err(GenerationError::Interrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, allocate};

    #[test]
    fn each_id_is_new() {
        let memory = allocate(2, HugePages::None, false).unwrap();
        let device = VmGeneration::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let id = || -> u128 {
            memory
                .read_obj(GuestAddress(layout::VM_GENERATION_ID_START))
                .unwrap()
        };
        assert_eq!(id(), 0);
        device.renew(&memory).unwrap();
        let first = id();
        device.renew(&memory).unwrap();
        assert!(first != 0 && first != id());
    }
}
