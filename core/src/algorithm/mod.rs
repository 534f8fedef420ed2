//! Algorithms in five phases, and what they declare they need.
