//! Stand-in for `xtask` until the task is wired there.

#[path = "xtask/train_tiny/mod.rs"]
mod train_tiny;

use clap::Parser as _;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: train_tiny::Args,
}

fn main() -> qfw_core::Result<()> {
    train_tiny::run(&Line::parse().args)
}
