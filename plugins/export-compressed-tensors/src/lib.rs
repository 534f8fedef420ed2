//! export-compressed-tensors
