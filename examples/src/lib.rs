//! Small programs that embed Wrenn; each is an example beside this directory.
