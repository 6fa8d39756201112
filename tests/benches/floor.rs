//! The floors: servers of tonic with nothing behind them, that answer the paths of the product with as many bytes as it does.
//!
//! They have the product's own acceptor, TLS and HTTP/2 settings; a *stock* one has tonic's own, on plaintext. A floor is a
//! process of its own, as the product is: this file is both its inside (`bench-net serve`) and how it is started.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use p2psb_client::{ClientAuth, Identity, ServerTls, TlsConfig};
use p2psb_e2e::process::Process;
use p2psb_e2e::trouble::{Context as _, Result};
use p2psb_proto::model::{PublicKey, SecretKey};
use p2psb_runtime::serve::{Gathered, Http2Config, Listener};
use serde_json::json;
use tempfile::TempDir;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::machine::Machine;
use crate::wire::Target;

/// A message that is nothing but bytes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Flat {
    #[prost(bytes = "bytes", tag = "1")]
    bytes: Bytes,
}

impl Flat {
    /// The message of so many encoded bytes, at least 3, and never 130.
    pub(crate) fn sized(encoded: usize) -> Self {
        // Tag and length take 2 bytes, and from 128 on the length takes two.
        let content = if encoded > 129 { encoded.saturating_sub(3) } else { encoded.saturating_sub(2) };
        Self { bytes: vec![0x5a; content].into() }
    }
}

/// What a floor is to be.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Bytes of an answer to an ordinary call or a message of a stream.
    #[arg(long)]
    pub(crate) answer: usize,
    /// Verify two signatures before answering a call.
    #[arg(long)]
    pub(crate) verify: bool,
    /// As tonic does by itself, without TLS.
    #[arg(long)]
    pub(crate) stock: bool,
    /// Where the certificate is made.
    #[arg(long)]
    pub(crate) dir: PathBuf,
}

/// A floor that runs.
pub(crate) struct Floor {
    process: Process,
    pub(crate) target: Target,
    // Last: the process ends before its folder goes.
    _dir: TempDir,
}

impl Floor {
    /// Starts one.
    pub(crate) async fn start(machine: &Machine, answer: usize, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("p2psb-floor-").tempdir().context("a temporary folder")?;
        let exe = std::env::current_exe().context("finding the running executable")?;
        let (answer, path) = (answer.to_string(), dir.path().display().to_string());
        let mut args = vec!["serve", "--answer", &answer, "--dir", &path];
        args.extend(flags);
        let mut process = {
            let _server = machine.as_server()?;
            Process::start("floor", &exe, &args, &dir.path().join("log"), None)?
        };
        let addr = process.addr("listening").await?;
        let pem = (!flags.contains(&"--stock")).then(|| dir.path().join("tls.pem"));
        Ok(Self { process, target: Target { addr, pem }, _dir: dir })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Runs one until it is killed.
pub(crate) fn serve(plan: &Plan) -> Result<()> {
    // As the product's programs do it.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("making a runtime")?.block_on(run(plan))
}

async fn run(plan: &Plan) -> Result<()> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bare =
        Bare { answer: Flat::sized(plan.answer), proven: plan.verify.then(|| Arc::new(Proven::new())) };
    if plan.stock {
        let incoming = TcpIncoming::bind(any).context("listening")?.with_nodelay(Some(true));
        announce(incoming.local_addr().context("listening")?)?;
        let server = Server::builder().add_service(bare).serve_with_incoming(incoming);
        return server.await.context("serving");
    }
    let identity = Identity::load_or_create(&plan.dir).context("making a key")?;
    let tls = ServerTls::load(&TlsConfig::default(), &identity, &plan.dir, ClientAuth::None);
    let listener = Listener::bind(any).context("listening")?;
    announce(listener.addr())?;
    let http2 = Http2Config::default();
    let connections = listener.incoming(&http2, tls.context("preparing TLS")?.handshake());
    // Without the place: nobody is counted here.
    let connections = connections.map(|admitted| Ok::<_, Infallible>(Gathered::new(admitted.io)));
    let server = http2.server().add_service(bare).serve_with_incoming(connections);
    server.await.context("serving")
}

fn announce(addr: SocketAddr) -> Result<()> {
    use std::io::Write as _;
    let line = json!({ "message": "listening", "addr": addr.to_string() });
    writeln!(std::io::stdout(), "{line}").context("saying where it listens")
}

/// Two signatures, of messages as long as a record and the answer to a challenge.
struct Proven {
    signed: [(Vec<u8>, [u8; 64]); 2],
    key: PublicKey,
}

impl Proven {
    /// What is signed of a record of 300 bytes, and of an answer.
    const SIZES: [usize; 2] = [300, 158];

    fn new() -> Self {
        let key = SecretKey::from_seed(&[7; 32]);
        let signed = Self::SIZES.map(|size| {
            let message = vec![0x5a; size];
            let signature = key.sign(&message);
            (message, signature)
        });
        Self { signed, key: key.public() }
    }

    fn verify(&self) -> std::result::Result<(), Status> {
        for (message, signature) in &self.signed {
            self.key.verify(message, signature).map_err(|error| Status::internal(error.to_string()))?;
        }
        Ok(())
    }
}

/// The service, written as tonic generates one: a boxed future for the call, and one for the method.
#[derive(Clone)]
struct Bare {
    answer: Flat,
    proven: Option<Arc<Proven>>,
}

impl NamedService for Bare {
    const NAME: &'static str = "p2psb.rendezvous.v1.RendezvousService";
}

impl tonic::codegen::Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bare = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                "/p2psb.rendezvous.v1.RendezvousService/Connect"
                | "/p2psb.rendezvous.v1.RendezvousService/LocateStream" => {
                    grpc.streaming(bare, request).await
                }
                _ => grpc.unary(bare, request).await,
            })
        })
    }
}

impl UnaryService<Flat> for Bare {
    type Response = Flat;
    type Future = BoxFuture<'static, std::result::Result<Response<Flat>, Status>>;

    fn call(&mut self, _: Request<Flat>) -> Self::Future {
        let bare = self.clone();
        Box::pin(async move {
            if let Some(proven) = &bare.proven {
                proven.verify()?;
            }
            Ok(Response::new(bare.answer))
        })
    }
}

impl StreamingService<Flat> for Bare {
    type Response = Flat;
    type ResponseStream = Pin<Box<dyn Stream<Item = std::result::Result<Flat, Status>> + Send>>;
    type Future = BoxFuture<'static, std::result::Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Flat>>) -> Self::Future {
        let answer = self.answer.clone();
        let answers = request.into_inner().map(move |heard| heard.map(|_| answer.clone()));
        Box::pin(async move { Ok(Response::new(Box::pin(answers) as Self::ResponseStream)) })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_flat_message_has_the_size_that_was_asked_for() {
        for size in [3, 42, 129, 400, 2000] {
            assert_eq!(Flat::sized(size).encoded_len(), size);
        }
    }
}
