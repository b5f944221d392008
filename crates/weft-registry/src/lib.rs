//! The catalog as pure functions: plan and fold over a view.
