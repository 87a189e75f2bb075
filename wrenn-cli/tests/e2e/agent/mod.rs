//! What a host does for its sandboxes.

mod disk;
mod jail;
