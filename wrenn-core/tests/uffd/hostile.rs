//! Messages of a VMM that was taken over are refused, each with its reason.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use wrenn_core::uffd::stand_in::{GuestMemory, Part, send};
use wrenn_core::uffd::{
    FillError, HandshakeError, LayoutError, Outcome, PAGE_SIZE, Report, ServeError,
};

use crate::saved::Saved;

fn refused(report: Report) -> HandshakeError {
    match report.outcome {
        Outcome::Failed(ServeError::Handshake(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// What a pager says to a message with descriptors, none of which need be memory.
fn answer(saved: &Saved, message: &[u8], descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Report {
    let pager = saved.serve();
    let connection = send(&saved.socket(), message, descriptors).unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    pager.join().unwrap()
}

#[test]
fn no_descriptor_two_descriptors_and_others_than_userfaultfds() {
    let saved = Saved::of_pages(4);
    let memory = GuestMemory::new(saved.length()).unwrap();
    let message = memory.describe(&[Part {
        at: 0,
        size: saved.length(),
        offset: 0,
    }]);
    let message = message.as_bytes();
    let error = refused(answer(&saved, message, &[]));
    assert!(matches!(error, HandshakeError::Descriptors(0)), "{error}");
    let error = refused(answer(&saved, message, &[memory.as_fd(), memory.as_fd()]));
    assert!(matches!(error, HandshakeError::Descriptors(2)), "{error}");
    let error = refused(answer(&saved, message, &[memory.as_fd(); 16]));
    assert!(matches!(error, HandshakeError::Descriptors(16)), "{error}");

    let (socket, _other) = UnixStream::pair().unwrap();
    for file in [
        File::open("/dev/null").unwrap().as_fd(),
        File::open("/proc/self/mem").unwrap().as_fd(),
        socket.as_fd(),
    ] {
        let error = refused(answer(&saved, message, &[file]));
        assert!(
            matches!(error, HandshakeError::NotUserfaultfd(_)),
            "{error}"
        );
    }
}

#[test]
fn messages_that_describe_nothing() {
    let saved = Saved::of_pages(4);
    let memory = GuestMemory::new(saved.length()).unwrap();
    let answer = |message: &[u8]| refused(answer(&saved, message, &[memory.as_fd()]));
    let error = answer(b"nonsense");
    assert!(
        matches!(error, HandshakeError::Layout(LayoutError::NotRegions(_))),
        "{error}"
    );
    let error = answer(b"[{\"base_host_virt_addr\":0,");
    assert!(matches!(error, HandshakeError::Closed), "{error}");
    let error = answer(&[b'['; 100_000]);
    assert!(
        matches!(
            error,
            HandshakeError::TooLong | HandshakeError::Layout(LayoutError::NotRegions(_))
        ),
        "{error}"
    );
    let error = answer(&[b' '; 100_000]);
    assert!(matches!(error, HandshakeError::TooLong), "{error}");
}

#[test]
fn memory_of_another_vm_is_refused() {
    let saved = Saved::of_pages(4);
    let memory = GuestMemory::new(8 * PAGE_SIZE).unwrap();
    let pager = saved.serve();
    let _connection = memory.hand_over(&saved.socket()).unwrap();
    let error = refused(pager.join().unwrap());
    assert!(
        matches!(error, HandshakeError::Layout(LayoutError::Outside(0))),
        "{error}"
    );
}

/// The description lies about where the memory is: the fault is not in it.
#[test]
fn a_fault_outside_of_what_was_described_ends_it() {
    let saved = Saved::of_pages(4);
    let memory = GuestMemory::new(2 * saved.length()).unwrap();
    let pager = saved.serve();
    let message = memory.describe(&[Part {
        at: 0,
        size: saved.length(),
        offset: 0,
    }]);
    let connection = send(&saved.socket(), message.as_bytes(), &[memory.as_fd()]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| memory.load(saved.length()));
        let report = pager.join().unwrap();
        assert!(
            matches!(
                report.outcome,
                Outcome::Failed(ServeError::Fill(FillError::NotGuestMemory(_)))
            ),
            "{report:?}"
        );
        memory
            .fill(saved.length(), &[0; 4096])
            .expect("the page was filled by nobody");
    });
    drop(connection);
}

#[test]
fn a_userfaultfd_that_blocks_is_made_not_to() {
    let saved = Saved::of_pages(4);
    let memory = GuestMemory::new(saved.length()).unwrap();
    let flags = rustix::fs::OFlags::empty();
    rustix::fs::fcntl_setfl(memory.as_fd(), flags).unwrap();
    let pager = saved.serve();
    let connection = memory.hand_over(&saved.socket()).unwrap();
    assert_eq!(memory.load(0), saved.word(0));
    drop(connection);
    crate::saved::ended(pager);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_is_refused_without_a_panic(
        message in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            r#"\[(\{"base_host_virt_addr":[0-9]{1,20},"size":[0-9]{1,20},"offset":[0-9]{1,20}\},?){0,3}\]?"#
                .prop_map(String::into_bytes),
        ],
        descriptors in 0..4usize,
    ) {
        let saved = Saved::of_pages(4);
        let null = File::open("/dev/null").unwrap();
        let report = answer(&saved, &message, &vec![null.as_fd(); descriptors]);
        refused(report);
    }
}
