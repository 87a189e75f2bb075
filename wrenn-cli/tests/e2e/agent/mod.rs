//! What a host does for its sandboxes.

mod jail;
