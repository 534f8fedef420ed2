//! What is available, and from where.
