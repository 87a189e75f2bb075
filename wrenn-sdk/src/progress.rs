//! How far a transfer is.

use std::sync::{Arc, Mutex, PoisonError};

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that were moved.
    pub done: u64,
    /// All bytes, where that is known.
    pub total: Option<u64>,
}

type Callback = dyn FnMut(Progress) + Send;

/// A callback that is told, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<Mutex<Callback>>>);

impl Observer {
    pub(crate) fn new(observer: impl FnMut(Progress) + Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(observer))))
    }

    pub(crate) fn report(&self, done: u64, total: Option<u64>) {
        if let Some(observer) = &self.0 {
            let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
            observer(Progress { done, total });
        }
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "None" })
    }
}
