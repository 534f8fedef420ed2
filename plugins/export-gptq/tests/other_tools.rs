//! Layers packed by other tools.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/fixtures/packed_layers.rs"]
mod packed_layers;

use qfw_export_gptq::GPTQ;

/// Whatever a configuration leaves out is told by the tensors, but not the version, and not the width where there is no index.
#[test]
fn layers_of_other_tools_are_read_to_the_last_bit() {
    packed_layers::layers_are_read_to_the_last_bit(GPTQ.container, &["group_size", "sym", "desc_act", "quant_method"], 10, true);
}
