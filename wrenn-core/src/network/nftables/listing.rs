//! Reads back what is in the firewall.

use std::io;

use super::attributes::Attributes;
use super::batch::{message, put_message};
use super::set::{Set, SetKey};
use super::{FAMILY_INET, Firewall, NftError, SUBSYSTEM};
use crate::network::netlink::{attributes_of, flags};

/// Length of `struct nfgenmsg` before the attributes.
const GENERIC_LEN: usize = 4;

impl Firewall {
    /// The keys of a set's elements, or nothing if there is no such set or table.
    pub(in crate::network) fn elements(
        &mut self,
        table: &str,
        set: &Set,
    ) -> Result<Vec<SetKey>, NftError> {
        let body = Attributes::new().string(1, table).string(2, set.name);
        let answers = self.socket.dump(|sequence| {
            let mut bytes = Vec::new();
            let kind = SUBSYSTEM << 8 | message::GET_ELEMENT;
            let flags = flags::REQUEST | flags::ACK | flags::DUMP;
            put_message(
                &mut bytes,
                kind,
                flags,
                sequence,
                FAMILY_INET,
                0,
                body.as_bytes(),
            );
            bytes
        });
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                let what = format!("the elements of set {}", set.name);
                return Err(NftError::List { what, source });
            }
        };
        Ok(answers
            .iter()
            .flat_map(|answer| keys(&answer.payload))
            .collect())
    }
}

/// The keys in one message of a listing.
fn keys(payload: &[u8]) -> Vec<SetKey> {
    let attributes = payload.get(GENERIC_LEN..).unwrap_or_default();
    attributes_of(attributes)
        .filter(|(kind, _)| *kind == 3) // NFTA_SET_ELEM_LIST_ELEMENTS
        .flat_map(|(_, list)| attributes_of(list))
        .filter_map(|(_, element)| {
            // NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE }
            let (_, key) = attributes_of(element).find(|(kind, _)| *kind == 1)?;
            let (_, bytes) = attributes_of(key).find(|(kind, _)| *kind == 1)?;
            SetKey::decode(bytes)
        })
        .collect()
}
