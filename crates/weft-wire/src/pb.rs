//! Generated from `proto/` and `third_party/` by `cargo xtask gen`; never edited by hand.
#![allow(clippy::all, clippy::pedantic, missing_docs)]

pub mod weft {
    pub mod v1 {
        include!("gen/weft.v1.rs");

        /// The secret never reaches a log.
        impl ::core::fmt::Debug for JoinRequest {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.debug_struct("JoinRequest")
                    .field("token_id", &self.token_id)
                    .field("namespace", &self.namespace)
                    .field("service_account", &self.service_account)
                    .field("node", &self.node)
                    .field("service", &self.service)
                    .finish_non_exhaustive()
            }
        }
    }
}

pub mod envoy {
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("gen/envoy.service.discovery.v3.rs");
            }
        }
    }
}

pub mod google {
    pub mod protobuf {
        include!("gen/google.protobuf.rs");
    }
    pub mod rpc {
        include!("gen/google.rpc.rs");
    }
}

pub mod grpc {
    pub mod health {
        pub mod v1 {
            include!("gen/grpc.health.v1.rs");
        }
    }
}
