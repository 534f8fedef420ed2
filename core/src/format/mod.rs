//! The built-in number formats.
