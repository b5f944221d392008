//! The product as its users meet it: real processes, real sockets, the command line's own words.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a user: it lives in real time")]

mod apps_bodies;
mod apps_envoy;
mod apps_explicit;
mod apps_grpc;
mod apps_http;
mod apps_peers;
mod apps_run;
mod apps_stalls;
mod apps_tcp;
mod basics;
mod dev_demo;
mod envoy;
mod fault_certs;
mod fault_control;
mod fault_disk;
mod fault_drain;
mod fault_load;
mod fault_nack;
mod fault_policy;
mod fault_reset;
mod fault_why;
mod fault_work;
mod h2c;
mod input_documents;
mod input_join;
mod input_peers;
mod input_start;
mod input_words;
mod mesh;
