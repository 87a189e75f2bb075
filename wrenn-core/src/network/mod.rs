//! Network slots.
