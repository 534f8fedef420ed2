//! The block loop: streams, sweeps, journal, progress.
