//! The plugins linked into the program. A crate that nobody names is dropped by the linker, and its records with it.

#[cfg(feature = "awq")]
use qfw_awq as _;
#[cfg(feature = "bias-correction")]
use qfw_bias_correction as _;
#[cfg(feature = "canonicalize")]
use qfw_canonicalize as _;
#[cfg(feature = "clip")]
use qfw_clip as _;
#[cfg(feature = "export-awq")]
use qfw_export_awq as _;
#[cfg(feature = "export-compressed-tensors")]
use qfw_export_compressed_tensors as _;
#[cfg(feature = "export-gguf")]
use qfw_export_gguf as _;
#[cfg(feature = "export-gptq")]
use qfw_export_gptq as _;
#[cfg(feature = "export-onnx")]
use qfw_export_onnx as _;
#[cfg(feature = "export-safetensors-float")]
use qfw_export_safetensors_float as _;
#[cfg(feature = "export-shark")]
use qfw_export_shark as _;
#[cfg(feature = "gpfq")]
use qfw_gpfq as _;
#[cfg(feature = "gptq")]
use qfw_gptq as _;
#[cfg(feature = "import-fp8")]
use qfw_import_fp8 as _;
#[cfg(feature = "learned-round")]
use qfw_learned_round as _;
#[cfg(feature = "magr")]
use qfw_magr as _;
#[cfg(feature = "qronos")]
use qfw_qronos as _;
#[cfg(feature = "rtn")]
use qfw_rtn as _;
#[cfg(feature = "smoothquant")]
use qfw_smoothquant as _;
#[cfg(feature = "spinquant")]
use qfw_spinquant as _;
#[cfg(feature = "svdquant")]
use qfw_svdquant as _;
#[cfg(feature = "weight-equalization")]
use qfw_weight_equalization as _;
#[cfg(feature = "zeroquant")]
use qfw_zeroquant as _;

#[cfg(test)]
mod tests;
