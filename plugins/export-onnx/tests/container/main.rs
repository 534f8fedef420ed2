//! Files that the containers make of tiny models, read without what wrote them. One program, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod file;
mod graph;
mod models;
mod weights;
mod wire;
