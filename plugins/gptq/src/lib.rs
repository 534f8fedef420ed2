//! gptq
