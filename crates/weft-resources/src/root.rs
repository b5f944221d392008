//! The namespace whose policies hold for the whole mesh.

use weft_model::Name;

use crate::violation::{Sink, Spot};

pub(crate) const ROOT_NAMESPACE: &str = "weft-system";
/// Istio's, of the same meaning. Here it is a namespace like others, and what was meant for the mesh would hold for
/// nobody.
const OF_ISTIO: &str = "istio-system";

pub(crate) fn warn_of_istios(namespace: &Name, spot: &Spot, out: &mut Sink) {
    if namespace.as_str() == OF_ISTIO {
        let what = format!(
            "holds for the workloads of namespace `{OF_ISTIO}` only; what holds for the whole mesh is in `{ROOT_NAMESPACE}`"
        );
        out.warn(spot, what);
    }
}
