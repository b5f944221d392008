//! What runs on a host beside its workloads: checks, registration, sidecar supervision.
