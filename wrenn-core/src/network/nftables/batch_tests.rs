//! Golden bytes of transactions. `nft --debug=mnl` prints the same for the same commands,
//! but for the order of attributes.

use std::net::Ipv4Addr;

use super::*;
use crate::network::nftables::set::KeyType;

const FORWARD: Chain = Chain {
    name: "f",
    kind: "filter",
    hook: Hook::Forward,
    priority: -1,
    policy: Policy::Drop,
};
const GUESTS: Set = Set {
    name: "g",
    key: KeyType::Address,
    interval: false,
};

/// The messages of an encoded transaction: type, flags, sequence, body.
fn messages(mut bytes: &[u8]) -> Vec<(u16, u16, u32, &[u8])> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let sequence = u32::from_ne_bytes(bytes[8..12].try_into().unwrap());
        found.push((half(4), half(6), sequence, &bytes[HEADER_LEN..length]));
        bytes = &bytes[length..];
    }
    found
}

#[test]
fn a_transaction_is_framed_numbered_and_acknowledged_once() {
    let mut batch = Batch::new("w");
    batch.add_table();
    batch.add_chain(&FORWARD);
    let bytes = batch.encode(41);
    let messages = messages(&bytes);
    assert_eq!(messages.len(), batch.message_count());
    assert_eq!(messages[0], (0x10, 0x1, 41, &[0, 0, 0, 10][..]));
    let table = [
        1, 0, 0, 0, 6, 0, 1, 0, b'w', 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0,
    ];
    assert_eq!(messages[1], (0xa00, 0x401, 42, &table[..]));
    let chain = [
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b'w', 0, 0, 0, // table
        6, 0, 3, 0, b'f', 0, 0, 0, // name
        20, 0, 4, 0x80, 8, 0, 1, 0, 0, 0, 0, 2, 8, 0, 2, 0, 255, 255, 255,
        255, // hook, priority
        8, 0, 5, 0, 0, 0, 0, 0, // policy
        11, 0, 7, 0, b'f', b'i', b'l', b't', b'e', b'r', 0, 0, // kind
    ];
    assert_eq!(messages[2], (0xa03, 0x405, 43, &chain[..]));
    assert_eq!(messages[3], (0x11, 0x1, 44, &[0, 0, 0, 10][..]));
    assert_eq!(batch.description(0), None);
    assert_eq!(batch.description(2), Some("make the filter chain f"));
}

#[test]
fn sets_and_their_elements() {
    let mut batch = Batch::new("w");
    batch.add_set(&GUESTS);
    batch.add_new_elements(&GUESTS, &[SetKey::Address(Ipv4Addr::new(10, 11, 0, 7))]);
    batch.delete_elements(&GUESTS, &[SetKey::Address(Ipv4Addr::new(10, 11, 0, 7))]);
    let bytes = batch.encode(1);
    let messages = messages(&bytes);
    let set = [
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b'w', 0, 0, 0, // table
        6, 0, 2, 0, b'g', 0, 0, 0, // name
        8, 0, 3, 0, 0, 0, 0, 0, // flags
        8, 0, 4, 0, 0, 0, 0, 7, // key type ipv4_addr
        8, 0, 5, 0, 0, 0, 0, 4, // key length
        8, 0, 10, 0, 0, 0, 0, 1, // number in this transaction
    ];
    assert_eq!(messages[1], (0xa09, 0x401, 2, &set[..]));
    let element = [
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b'w', 0, 0, 0, // table
        6, 0, 2, 0, b'g', 0, 0, 0, // set
        20, 0, 3, 0x80, 16, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 10, 11, 0, 7,
    ];
    assert_eq!(messages[2], (0xa0c, 0x601, 3, &element[..]));
    assert_eq!(messages[3], (0xa0e, 0x5, 4, &element[..]));
}

#[test]
fn a_rule_is_its_expressions_in_order() {
    let mut batch = Batch::new("w");
    batch.add_rule(&FORWARD, &Rule::new().input_begins("wr").drop());
    let bytes = batch.encode(1);
    let rule = [
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b'w', 0, 0, 0, // table
        6, 0, 2, 0, b'f', 0, 0, 0, // chain
        152, 0, 4, 0x80, // expressions
        36, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0, // meta
        20, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 6, // iifname → 1
        44, 0, 1, 0x80, 8, 0, 1, 0, b'c', b'm', b'p', 0, // cmp
        32, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 0, // 1 ==
        12, 0, 3, 0x80, 6, 0, 1, 0, b'w', b'r', 0, 0, // "wr"
        20, 0, 1, 0x80, 12, 0, 1, 0, b'c', b'o', b'u', b'n', b't', b'e', b'r', 0, // counter
        4, 0, 2, 0x80, //
        48, 0, 1, 0x80, 14, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
        28, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0, // into the verdict register
        16, 0, 2, 0x80, 12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0, // drop
    ];
    let messages = messages(&bytes);
    assert_eq!(messages[1].0, 0xa06);
    assert_eq!(messages[1].1, 0xc05);
    assert_eq!(messages[1].3, rule);
}

#[test]
fn elements_are_exchanged_by_a_removal_that_names_none() {
    let mut batch = Batch::new("w");
    batch.flush_set(&GUESTS);
    batch.add_elements(&GUESTS, &[]);
    let bytes = batch.encode(1);
    let messages = messages(&bytes);
    let all = [
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b'w', 0, 0, 0, // table
        6, 0, 2, 0, b'g', 0, 0, 0, // set
    ];
    assert_eq!(messages[1], (0xa0e, 0x5, 2, &all[..]));
    assert_eq!(messages.len(), 3, "nothing to add is no message");
}

#[test]
fn a_connection_is_reset_if_it_is_one_of_tcp() {
    let mut batch = Batch::new("w");
    batch.add_rule(&FORWARD, &Rule::new().tcp().reset());
    let bytes = batch.encode(1);
    let rule = [
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b'w', 0, 0, 0, // table
        6, 0, 2, 0, b'f', 0, 0, 0, // chain
        132, 0, 4, 0x80, // expressions
        36, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0, // meta
        20, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 16, // l4proto → 1
        44, 0, 1, 0x80, 8, 0, 1, 0, b'c', b'm', b'p', 0, // cmp
        32, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 0, // 1 ==
        12, 0, 3, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, // tcp
        20, 0, 1, 0x80, 12, 0, 1, 0, b'c', b'o', b'u', b'n', b't', b'e', b'r', 0, // counter
        4, 0, 2, 0x80, //
        28, 0, 1, 0x80, 11, 0, 1, 0, b'r', b'e', b'j', b'e', b'c', b't', 0, 0, // reject
        12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, // with tcp reset
    ];
    assert_eq!(messages(&bytes)[1].3, rule);
}

#[test]
fn long_lists_of_elements_are_split() {
    let keys: Vec<SetKey> = (0..3_000)
        .map(|bits| SetKey::Address(Ipv4Addr::from_bits(bits)))
        .collect();
    let mut batch = Batch::new("w");
    batch.add_elements(&GUESTS, &keys);
    let bytes = batch.encode(1);
    let messages = messages(&bytes);
    assert_eq!(messages.len(), 2 + 6);
    assert!(messages.iter().all(|(.., body)| body.len() < 65_536));
    let acknowledged: Vec<usize> = (0..messages.len())
        .filter(|at| messages[*at].1 & flags::ACK != 0)
        .collect();
    assert_eq!(acknowledged, [6]);
}
