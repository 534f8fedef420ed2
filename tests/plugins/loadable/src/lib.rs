//! Every algorithm of this workspace that can be loaded at run time, as one library.

use qfw_bridge::{Linked, LinkedFormat};
use qfw_core::format::{BUILTIN, FormatRecord};

/// The record of `nf4`.
const fn nf4() -> &'static FormatRecord {
    // The families of tables; there is one.
    &BUILTIN[2][0]
}

qfw_abi::export_plugin! {
    id: "org.qfw.loadable",
    version: env!("CARGO_PKG_VERSION"),
    algorithms: [
        &Linked(&qfw_rtn::RECORD),
        &Linked(&qfw_gptq::RECORD),
        &Linked(&qfw_qronos::RECORD),
        &Linked(&qfw_magr::RECORD),
        &Linked(&qfw_svdquant::RECORD),
        &Linked(&qfw_smoothquant::RECORD),
        &Linked(&qfw_clip::RECORD),
        &Linked(&qfw_gpfq::RECORD),
        &Linked(&qfw_awq::RECORD),
        &Linked(&qfw_zeroquant::RECORD),
    ],
    formats: [&LinkedFormat { record: nf4(), name: "nf4", id: "loaded.nf4" }],
}
