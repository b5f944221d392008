//! The only door outside: clock, dice, sockets, tasks, drain, logging, the metrics catalogue.
//!
//! Everything else takes time, randomness and the network as arguments; the values come from here.
//!
//! Architecture invariant: knows nothing of the mesh. It uses `weft-model` for [`Mono`](weft_model::Mono) and
//! [`Wall`](weft_model::Wall) only.

pub mod clock;
pub mod dice;
pub mod drain;
pub mod env;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod net;
pub mod process;
mod sys;
pub mod tasks;

pub use clock::Clock;
pub use dice::Dice;
pub use tasks::{Task, Tasks};
