//! The product as its users meet it: real processes, real sockets, the command line's own words.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a user: it lives in real time")]

mod basics;
mod fault_control;
mod fault_load;
mod fault_work;
mod input_documents;
mod input_join;
mod input_start;
mod mesh;
