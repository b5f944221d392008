//! Sealing keys.
