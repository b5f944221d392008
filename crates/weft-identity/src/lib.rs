//! SVIDs, bundles, CSRs, verification, TLS configurations, the rotation plan.
