//! A fake host and an in-process server, for tests.
