//! Small programs that use Wrenn over the SDK, or embed its engines; each is an example beside this
//! directory.
