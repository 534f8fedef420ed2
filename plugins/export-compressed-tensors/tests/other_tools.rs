//! Layers that llm-compressor quantized and stored.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/fixtures/packed_layers.rs"]
mod packed_layers;

use qfw_export_compressed_tensors::AUTO;

/// Integers of several widths, symmetric and affine, and floats of 8 and 4 bits.
#[test]
fn layers_of_other_tools_are_read_to_the_last_bit() {
    packed_layers::layers_are_read_to_the_last_bit(AUTO.container, &[], 13, false);
}
