//! Labels, the selectors over them, and where a workload is.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<Arc<str>, Arc<str>>);

/// Every pair must be there (Istio's `matchLabels`); the empty selector selects everything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(pub BTreeMap<Arc<str>, Arc<str>>);

/// Region and zone; empty means unknown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
}

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|v| &**v)
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(k, v)| labels.0.get(k) == Some(v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_when_every_pair_is_there() {
        let labels: Labels = [("app", "web"), ("version", "v1")].into_iter().collect();
        let selector =
            |pairs: &[(&str, &str)]| Selector(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
        assert!(selector(&[]).matches(&labels));
        assert!(selector(&[("app", "web")]).matches(&labels));
        assert!(!selector(&[("app", "web"), ("version", "v2")]).matches(&labels));
        assert!(!selector(&[("tier", "1")]).matches(&labels));
    }
}
