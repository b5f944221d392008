//! Documents in, violations or fragments out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

mod golden;
mod goldens;
mod properties;
mod stream;
