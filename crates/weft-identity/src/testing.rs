//! Test certificates.
