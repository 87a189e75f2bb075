//! Work of tasks that waits for the disk.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does work that may block, while the other tasks of this thread go on on another. A runtime
/// that has one thread only waits for it.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn other_tasks_go_on_beside_blocking_work() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (sender, receiver) = channel();
        let waiting = runtime.spawn(async move {
            tokio::spawn(async move { sender.send(()).unwrap() });
            in_place(|| receiver.recv_timeout(Duration::from_secs(60)))
        });
        runtime.block_on(waiting).unwrap().unwrap();
    }

    #[tokio::test]
    async fn single_thread_does_the_work_itself() {
        assert_eq!(in_place(|| 7), 7);
    }

    #[test]
    fn thread_without_runtime_does_the_work_itself() {
        assert_eq!(in_place(|| 7), 7);
    }
}
