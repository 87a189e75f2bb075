//! Waits for descriptors and calls whoever is responsible. One loop runs on the main
//! thread, and one more on the thread of each drive, so that a slow disk delays neither
//! packets nor API requests.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Gets called when a descriptor is ready.
pub trait EventHandler: Send + Sync {
    /// `source` is the number that the descriptor was added with.
    fn handle(&self, source: u32, events: EventSet);
}

struct Watch {
    handler: Arc<dyn EventHandler>,
    source: u32,
}

/// An epoll set with handlers.
pub struct EventLoop {
    epoll: Epoll,
    watches: Vec<Watch>,
}

impl EventLoop {
    /// An empty loop.
    ///
    /// # Errors
    /// If the kernel has no epoll descriptor for us.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            watches: Vec::new(),
        })
    }

    /// Watches `descriptor`, which its handler owns and keeps open.
    ///
    /// # Errors
    /// If the descriptor cannot be polled.
    pub fn add(
        &mut self,
        descriptor: RawFd,
        events: EventSet,
        handler: Arc<dyn EventHandler>,
        source: u32,
    ) -> io::Result<()> {
        let token = self.watches.len() as u64;
        self.epoll.ctl(
            ControlOperation::Add,
            descriptor,
            EpollEvent::new(events, token),
        )?;
        self.watches.push(Watch { handler, source });
        Ok(())
    }

    /// Waits for something to happen and handles it.
    ///
    /// # Errors
    /// If waiting itself fails.
    pub fn run_once(&self) -> io::Result<()> {
        const BATCH: usize = 16;
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            let watch = usize::try_from(event.data())
                .ok()
                .and_then(|at| self.watches.get(at));
            if let Some(watch) = watch {
                watch.handler.handle(watch.source, event.event_set());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::sync::lock;

    struct Counter {
        event: EventFd,
        seen: Mutex<Vec<u32>>,
    }

    impl EventHandler for Counter {
        fn handle(&self, source: u32, _events: EventSet) {
            self.event.read().unwrap();
            lock(&self.seen).push(source);
        }
    }

    #[test]
    fn handler_learns_which_descriptor_was_ready() {
        let counter = || {
            Arc::new(Counter {
                event: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
                seen: Mutex::default(),
            })
        };
        let (first, second) = (counter(), counter());
        let mut events = EventLoop::new().unwrap();
        events
            .add(first.event.as_raw_fd(), EventSet::IN, first.clone(), 7)
            .unwrap();
        events
            .add(second.event.as_raw_fd(), EventSet::IN, second.clone(), 9)
            .unwrap();
        second.event.write(1).unwrap();
        events.run_once().unwrap();
        assert_eq!(
            (lock(&first.seen).clone(), lock(&second.seen).clone()),
            (vec![], vec![9])
        );
    }
}
