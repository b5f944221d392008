//! The stores under one suite, and under crashes.

mod conforms;
