//! What requests and connections are counted by: Istio's metrics under Istio's names (features.md OBS-01, OBS-02), and ours.

use std::sync::Arc;

/// One end of an edge, as metrics name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub principal: Arc<str>,
    pub cluster: Arc<str>,
    pub zone: Arc<str>,
}
