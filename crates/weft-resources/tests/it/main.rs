//! Documents in, violations or fragments out.

mod golden;
mod goldens;
mod properties;
mod stream;
