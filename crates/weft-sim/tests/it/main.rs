//! The whole mesh in one thread: a real control plane, real proxies, real mTLS, over pipes and in paused time.

mod calls;
mod control;
mod judge;
mod mesh;
mod node;
mod oracle;
mod simulation;
