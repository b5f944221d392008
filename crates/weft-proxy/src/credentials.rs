//! Who a workload is, and whom it believes: one value, swapped as one.

use weft_identity::{Svid, Trust};

#[derive(Debug, Clone)]
pub struct Credentials {
    pub svid: Svid,
    pub trust: Trust,
}
