//! Client for the daemon in the guest.
