//! Files that the container makes of tiny models. One program, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod header;
mod models;
mod tensors;
mod tokenizer;
