//! Layers packed by other tools.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/fixtures/packed_layers.rs"]
mod packed_layers;

use qfw_export_awq::AWQ;

/// Whatever a configuration leaves out is told by the tensors.
#[test]
fn layers_of_other_tools_are_read_to_the_last_bit() {
    packed_layers::layers_are_read_to_the_last_bit(AWQ.container, &["group_size", "bits", "version", "zero_point"], 3, true);
}
