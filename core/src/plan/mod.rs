//! From raw configuration to the resolved, immutable plan.
