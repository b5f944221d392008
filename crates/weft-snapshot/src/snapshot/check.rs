//! What one fragment must have, whatever else is there.

use std::collections::BTreeSet;

use crate::fragment::{Endpoint, Tunnel, Workload};

pub(super) fn workload(w: &Workload) -> Result<(), String> {
    if w.sni.is_empty() {
        return Err("the workload has no server name".into());
    }
    let mut apps = BTreeSet::new();
    for listen in &w.listens {
        if !apps.insert(listen.app) {
            return Err(format!("two ports of the workload have the address {}", listen.app));
        }
    }
    Ok(())
}

pub(super) fn endpoint(e: &Endpoint) -> Result<(), String> {
    match e.tunnel {
        Tunnel::None => Ok(()),
        Tunnel::Hbone | Tunnel::Weft1 if e.identities.is_empty() => {
            Err("the endpoint is reached through the mesh but no identity is expected of it".into())
        }
        Tunnel::Hbone | Tunnel::Weft1 if e.mesh.is_none() => {
            Err("the endpoint is reached through the mesh but has no mesh address".into())
        }
        Tunnel::Weft1 if e.sni.is_empty() => Err("the endpoint speaks weft/1 but has no server name".into()),
        Tunnel::Hbone | Tunnel::Weft1 => Ok(()),
    }
}
