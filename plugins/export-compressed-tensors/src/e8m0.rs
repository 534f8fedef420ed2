//! Scales that are powers of two: a byte, the exponent plus 127. 255 is no number. Source: OCP Microscaling Formats 1.0.

use qfw_core::Result;
use qfw_core::scheme::PowerRounding;

use crate::read::bad;

/// What they are stored as, here and by others.
pub(crate) const TYPES: [&str; 2] = ["U8", "F8_E8M0"];

/// The exponent of a scale of 1.
const BIAS: i32 = 127;

pub(crate) fn encode(scales: &[f32]) -> Vec<u8> {
    scales.iter().map(|s| (PowerRounding::Floor.exponent(f64::from(*s)) + BIAS).clamp(0, 254) as u8).collect()
}

/// The scales of the tensor `name`.
pub(crate) fn decode(bytes: &[u8], name: &str) -> Result<Vec<f32>> {
    if bytes.contains(&u8::MAX) {
        return Err(bad(format!("`{name}` holds a scale that is not a number")));
    }
    Ok(bytes.iter().map(|b| 2f64.powi(i32::from(*b) - BIAS) as f32).collect())
}
