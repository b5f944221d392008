//! Every format between our processes, and the sans-IO delta engine.
