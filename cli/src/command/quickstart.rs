//! `qfw quickstart`

use qfw_core::Result;

pub(crate) fn run() -> Result<()> {
    Ok(())
}
