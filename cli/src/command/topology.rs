//! `qfw topology check`

use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::topology::check;
use qfw_core::{Error, Result};

use super::{say_json, use_threads};
use crate::arguments::{Topology, TopologyCommand};
use crate::hub;
use crate::terminal::say;

pub(crate) fn run(a: &Topology) -> Result<()> {
    let TopologyCommand::Check { model, seed, json } = &a.command;
    use_threads(None)?;
    let opened = Opened::open(&hub::model(model)?, &Registry::linked()?)?;
    let table = check(&opened.model, *seed)?;
    if *json {
        say_json(&table)?;
    } else {
        say(table.to_string().trim_end());
    }
    if table.ok() {
        return Ok(());
    }
    Err(Error::numeric("topology::wrong", "a declared symmetry does not hold, or an undeclared one does")
        .hint("correct the regions declared beside the architecture's forward pass"))
}
