//! The product as its users meet it: real processes, real sockets, the command line's own words.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a user: it lives in real time")]

mod basics;
mod mesh;
