//! What is collected from activations, and how partial results are combined.
