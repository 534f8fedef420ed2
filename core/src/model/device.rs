//! Where blocks run.
//!
//! A device holds one block's weights and the hidden states that go through it. What the taps see comes back to the CPU, where statistics,
//! solvers and containers are, so nothing but the forward sweeps depends on the device.

use candle_core::Device;

use crate::error::{Error, Result};

/// The name of the processor itself.
pub const CPU: &str = "cpu";

/// The device called `name`: `cpu`, or `cuda:N` for the CUDA device of that number.
///
/// # Errors
/// If there is no such device, or this build cannot use it.
pub fn device(name: &str) -> Result<Device> {
    if name == CPU {
        return Ok(Device::Cpu);
    }
    let Some(number) = name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) else {
        return Err(Error::config("device::unknown", format!("there is no device `{name}`"))
            .hint("`cpu`, or `cuda:N`: the CUDA device of that number, such as `cuda:0`"));
    };
    if !candle_core::utils::cuda_is_available() {
        return Err(Error::config("device::unavailable", format!("device `{name}` is not available in this build"))
            .hint("use `--device cpu`, or a program built with `cargo build --release --features cuda`"));
    }
    Device::new_cuda(number).map_err(|e| {
        Error::config("device::unavailable", format!("device `{name}` cannot be used: {e}"))
            .hint("`nvidia-smi -L` lists the devices of this machine; `--device cpu` needs none")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_kind_and_number() {
        assert!(device("cpu").unwrap().is_cpu());
        for unknown in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU", ""] {
            assert_eq!(device(unknown).unwrap_err().code(), "device::unknown", "{unknown}");
        }
        if !candle_core::utils::cuda_is_available() {
            assert_eq!(device("cuda:0").unwrap_err().code(), "device::unavailable");
        }
    }
}
