//! Authorities and revocations.

use std::sync::Arc;

use bytes::Bytes;
use weft_model::{SpiffeId, TrustDomain};
use weft_snapshot::fragment::{Bundle, Revocations};

use super::{DecodeError, Leaf as _, each};
use crate::pb::weft::v1 as pb;

pub fn bundle(b: &Bundle) -> pb::Bundle {
    let Bundle { trust_domain, authorities } = b;
    pb::Bundle { trust_domain: trust_domain.to_string(), authorities: blobs(authorities) }
}

pub fn read_bundle(b: pb::Bundle) -> Result<Bundle, DecodeError> {
    Ok(Bundle {
        trust_domain: TrustDomain::parse(&b.trust_domain).leaf("trust_domain")?,
        authorities: read_blobs(b.authorities),
    })
}

pub fn revocations(r: &Revocations) -> pb::Revocations {
    let Revocations { serials, ids, issuer_keys } = r;
    pb::Revocations {
        serials: blobs(serials),
        ids: ids.iter().map(ToString::to_string).collect(),
        issuer_keys: blobs(issuer_keys),
    }
}

pub fn read_revocations(r: pb::Revocations) -> Result<Revocations, DecodeError> {
    Ok(Revocations {
        serials: read_blobs(r.serials),
        ids: each("ids", r.ids, |id| SpiffeId::parse(&id).leaf(""))?,
        issuer_keys: read_blobs(r.issuer_keys),
    })
}

fn blobs(list: &[Arc<[u8]>]) -> Vec<Bytes> {
    list.iter().map(|b| Bytes::copy_from_slice(b)).collect()
}

fn read_blobs(list: Vec<Bytes>) -> Vec<Arc<[u8]>> {
    list.iter().map(|b| Arc::from(&**b)).collect()
}
