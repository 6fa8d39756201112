//! A host on a real port with real TLS, and links to it.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use p2psb_client::{ClientAuth, Dialer, Identity, ServerTls, TlsConfig};
use p2psb_peer_agent::exchange::accept::Peers;
use p2psb_peer_agent::exchange::dial::Caller;
use p2psb_peer_agent::exchange::{ChunkSource, Ends, Gate, Link};
use p2psb_proto::error::Failure;
use p2psb_proto::model::{Address, AddressKind, Digest, Genesis, NetworkId, Transport};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_runtime::serve::{Http2Config, Listener, serve};
use p2psb_runtime::{Api, Clock, Drain, Running, ServeOptions};

/// Shares nothing.
pub(crate) struct Nothing;

impl ChunkSource for Nothing {
    fn read(
        &self,
        _: &Digest,
        _: &[Digest],
        _: &mut dyn FnMut(Option<Bytes>) -> ControlFlow<()>,
    ) -> Result<bool, Failure> {
        Ok(false)
    }
}

pub(crate) fn network(name: &str) -> NetworkId {
    Genesis::open(name).unwrap().network_id()
}

pub(crate) fn ends(identity: &Identity, name: &str, source: impl ChunkSource) -> Ends {
    let source = Arc::new(source);
    Ends {
        network: network(name),
        own: identity.peer_id(),
        software: "test/1",
        source,
        clock: Clock::system(),
    }
}

/// A host that serves what it is given.
pub(crate) struct Host {
    pub(crate) identity: Identity,
    pub(crate) addr: SocketAddr,
    pub(crate) drain: Drain,
    pub(crate) gate: Gate,
    _running: Running,
    _dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn start(source: impl ChunkSource) -> Self {
        let (dir, identity) = (tempfile::tempdir().unwrap(), Identity::ephemeral().unwrap());
        let tls =
            ServerTls::load(&TlsConfig::default(), &identity, dir.path(), ClientAuth::Required).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, drain, gate) = (listener.addr(), Drain::new(), Gate::default());
        let peers = Peers::service(ends(&identity, "test", source), gate.clone(), drain.clone());
        let options =
            ServeOptions { http2: Http2Config::bulk(), drain: drain.clone(), ..ServeOptions::default() };
        let api = Api::new(&[DESCRIPTORS]).add_service(peers);
        let running = serve(api, listener.incoming(&options.http2, tls.handshake()), options).unwrap();
        Self { identity, addr, drain, gate, _running: running, _dir: dir }
    }

    pub(crate) fn address(&self) -> Address {
        Address::ip(self.addr, Transport::Tls, AddressKind::Listen)
    }
}

pub(crate) fn caller(identity: &Identity, name: &str) -> Caller {
    Caller::new(Dialer::new(Some(identity), None).unwrap(), ends(identity, name, Nothing))
}

pub(crate) async fn link_to(host: &Host) -> Link {
    let me = Identity::ephemeral().unwrap();
    caller(&me, "test").open(host.identity.peer_id(), &[host.address()]).await.unwrap()
}
