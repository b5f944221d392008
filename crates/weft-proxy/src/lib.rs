//! The data plane: sidecar and node proxy.
