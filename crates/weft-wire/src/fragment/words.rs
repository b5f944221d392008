//! Words that several fragments use.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use weft_model::{Health, Labels, Locality, Protocol};
use weft_snapshot::fragment::{Action, Balance, DefaultAction, MtlsMode, Tunnel};

use super::{DecodeError, bad};
use crate::pb::weft::v1 as pb;

/// Both directions of an enumeration from one list, so that neither can miss a word. Zero is no word: an enumeration
/// that is absent or newer than this version is refused.
macro_rules! enumeration {
    ($to:ident, $from:ident, $t:ident { $($v:ident),* }) => {
        pub fn $to(v: $t) -> i32 {
            match v { $($t::$v => pb::$t::$v as i32,)* }
        }

        pub fn $from(field: &str, v: i32) -> Result<$t, DecodeError> {
            match pb::$t::try_from(v) {
                $(Ok(pb::$t::$v) => Ok($t::$v),)*
                Ok(pb::$t::Unspecified) => Err(bad(field, "is missing")),
                Err(_) => Err(bad(field, format!("is {v}, which this version does not know"))),
            }
        }
    };
}

enumeration!(protocol, read_protocol, Protocol { Undeclared, Http, Http2, Grpc, Tcp, Tls });
enumeration!(health, read_health, Health { Passing, Warning, Unknown, Critical, Draining, Maintenance });
enumeration!(tunnel, read_tunnel, Tunnel { None, Hbone, Weft1 });
enumeration!(balance, read_balance, Balance { PeakEwma, LeastRequest, RoundRobin, Random });
enumeration!(mtls, read_mtls, MtlsMode { Strict, Permissive, Disable });
enumeration!(default_action, read_default_action, DefaultAction { Deny, AllowAuthenticated, Allow });
enumeration!(action, read_action, Action { Deny, Allow, Audit });

pub fn labels(l: &Labels) -> BTreeMap<String, String> {
    l.0.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

pub fn read_labels(l: BTreeMap<String, String>) -> Labels {
    l.into_iter().collect()
}

/// Nothing for what is not known.
pub fn locality(l: &Locality) -> Option<pb::Locality> {
    let Locality { region, zone } = l;
    (*l != Locality::default()).then(|| pb::Locality { region: region.to_string(), zone: zone.to_string() })
}

pub fn read_locality(l: Option<pb::Locality>) -> Locality {
    l.map(|l| Locality { region: l.region.into(), zone: l.zone.into() }).unwrap_or_default()
}

/// 584 years are enough for any timeout.
pub fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

pub fn strings(list: &[Arc<str>]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

pub fn read_strings(list: Vec<String>) -> Vec<Arc<str>> {
    list.into_iter().map(Into::into).collect()
}
