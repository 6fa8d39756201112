//! Generated types: exactly the contract, unchecked. Convert to [`crate::model`] before relying on a value.

#![allow(missing_docs, unreachable_pub, rustdoc::all, clippy::all, clippy::disallowed_methods)]

/// Records, peers, hellos.
pub mod common {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("p2psb.common.v1");
    }
}

/// Sessions, queries and bridging of rendezvous servers.
pub mod rendezvous {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("p2psb.rendezvous.v1");
    }
}

/// The locator as a service.
pub mod discovery {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("p2psb.discovery.v1");
    }
}

/// The catalogue.
pub mod package_index {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("p2psb.package_index.v1");
    }
}

/// Manifests and the exchange of chunks.
pub mod peer {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("p2psb.peer.v1");
    }
}

/// Control of the agent by its user.
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("p2psb.agent.v1");
    }
}

/// The encoded `FileDescriptorSet` of the whole contract, with comments: for reflection, and for the test of its style.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
