//! Builds netlink attributes: length, type, value, padding to four bytes.

use crate::network::netlink::ATTRIBUTE_HEADER_LEN;

/// `NLA_F_NESTED` of `linux/netlink.h`.
const NESTED: u16 = 0x8000;

/// A list of attributes in the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::network) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    pub(in crate::network) fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute with these bytes as its value.
    ///
    /// # Panics
    /// When the value is longer than an attribute can be, 65,531 bytes. Nothing of ours
    /// comes near: long lists of elements are split over several messages.
    pub(in crate::network) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len())
            .expect("an attribute holds less than 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a string with the zero byte that the kernel wants at its end.
    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated)
    }

    /// Adds a number in network byte order, as nf_tables has all of its numbers.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number of 64 bits in network byte order.
    pub(super) fn long_number(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds one byte.
    pub(super) fn byte(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Adds a list of attributes as one.
    pub(in crate::network) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.nested_bytes(kind, &inner.bytes)
    }

    /// Adds a list of attributes that is encoded already.
    pub(in crate::network) fn nested_bytes(self, kind: u16, inner: &[u8]) -> Self {
        self.bytes(kind | NESTED, inner)
    }

    pub(in crate::network) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::network::netlink::attributes_of;

    #[test]
    fn values_are_padded_but_their_length_is_not() {
        let attributes = Attributes::new().string(1, "wrenn").number(2, 7);
        assert_eq!(
            attributes.as_bytes(),
            [
                10, 0, 1, 0, b'w', b'r', b'e', b'n', b'n', 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 7
            ]
        );
    }

    #[test]
    fn nested_attributes_carry_the_flag() {
        let attributes = Attributes::new().nest(3, &Attributes::new().byte(1, 9));
        assert_eq!(
            attributes.as_bytes(),
            [12, 0, 3, 0x80, 5, 0, 1, 0, 9, 0, 0, 0]
        );
    }

    proptest! {
        #[test]
        fn what_is_built_is_read_back(
            values in prop::collection::vec(
                (0_u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)),
                0..20,
            ),
        ) {
            let built = values
                .iter()
                .fold(Attributes::new(), |built, (kind, value)| built.bytes(*kind, value));
            let read: Vec<_> = attributes_of(built.as_bytes())
                .map(|(kind, value)| (kind, value.to_vec()))
                .collect();
            prop_assert_eq!(read, values);
        }
    }
}
