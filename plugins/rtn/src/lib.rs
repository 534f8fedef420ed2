//! rtn
