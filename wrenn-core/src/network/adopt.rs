//! Taking over the slot of an owner that died.

use super::{Network, NetworkSlot, SlotNumber};

/// Why a slot was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptSlotError {
    /// Its number is free, or somebody else's.
    #[error("slot {slot} does not belong to {owner}")]
    Foreign {
        /// The slot.
        slot: SlotNumber,
        /// Whose it should be.
        owner: String,
    },
}

impl Network {
    /// Takes over slot `slot` of `owner`.
    ///
    /// # Errors
    /// When it is not there or not the owner's.
    pub async fn adopt_slot(
        &self,
        slot: SlotNumber,
        owner: &str,
    ) -> Result<NetworkSlot, AdoptSlotError> {
        Err(AdoptSlotError::Foreign {
            slot,
            owner: owner.to_owned(),
        })
    }
}
