//! What the agent on a host is made of.

mod disk;
