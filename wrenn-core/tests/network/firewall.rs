//! What somebody with `nft` might do to a host, without that program.

use netlink_sys::{Socket, SocketAddr};

/// `NETLINK_NETFILTER`, and the messages of a transaction, as in `linux/netfilter`.
const NETFILTER: isize = 12;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const DELETE_TABLE: u16 = 10 << 8 | 2;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const INET: u8 = 1;

/// Deletes the table of our name in the calling thread's namespace.
pub(crate) fn delete_table() {
    let mut socket = Socket::new(NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    // NFTA_TABLE_NAME
    let name = [10, 0, 1, 0, b'w', b'r', b'e', b'n', b'n', 0, 0, 0];
    let mut bytes = message(BATCH_BEGIN, REQUEST, 0, 10, &[]);
    bytes.extend(message(DELETE_TABLE, REQUEST | ACKNOWLEDGE, INET, 0, &name));
    bytes.extend(message(BATCH_END, REQUEST, 0, 10, &[]));
    socket.send(&bytes, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    // NLMSG_ERROR with the number 0.
    assert_eq!((answer[4], &answer[16..20]), (2, &[0; 4][..]), "{answer:?}");
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}
