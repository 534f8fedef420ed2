//! Roles, ports, parameters and regions of an architecture, and the views derived from them.
