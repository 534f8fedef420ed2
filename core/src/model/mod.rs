//! Architectures: configuration to topology, and blocks run through taps.
