//! What operators write, one directory per kind, compiled into fragments.
//!
//! In reading order: [`parse`] cuts a stream into [`Document`]s; [`admit`] turns each into a [`Resource`] or says
//! everything that is wrong with it, and is the same function for the command line, the API and reading back from the
//! store; a [`World`] holds all resources and the catalog; [`compile`] makes one collection of fragments out of it, and
//! [`affected`] says which collections a change can touch; [`status`] is what we have to say back.
//!
//! Architecture invariant: pure. The same world compiles to the same fragments, in whatever order it was put together.

mod admit;
mod affected;
pub mod catalog;
mod compile;
pub mod document;
pub mod kind;
mod node;
mod root;
mod schema;
mod set;
pub mod status;
mod violation;
mod words;

pub use admit::{Resource, ResourceKey, Spec, admit};
pub use affected::{Affected, Change, affected};
pub use catalog::{Catalog, Instance, InstancePort, Mesh, Registered, World};
pub use compile::{
    Definition, compile, compile_endpoints, compile_inbound, compile_routes, compile_service, compile_workload, define,
    known_services, members,
};
pub use document::{Document, Metadata, parse};
pub use kind::{Kind, KindInfo, MESH_SCOPE};
pub use node::{Key, Node, Value};
pub use set::ResourceSet;
pub use violation::{Reason, Spot, Violation, Violations};
