//! Serving gRPC and stopping well.
//!
//! Connections come in through the door of a [`Listener`]; which handshake they go through there, TLS or none, is the caller's. Promises:
//! every limit of [`Http2Config`] holds; health and reflection name what is served; after
//! [`Running::drain`] returns, no connection and no call is left, because what did not end by itself
//! before the deadline was cut.

mod answers;
mod api;
mod conversation;
mod door;
mod drain;
mod framed;
mod http2;
mod io;
mod listener;
mod prompt;
mod proxy;
mod time_left;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

pub use answers::Arrived;
pub use api::{Api, ApiError, GrpcService};
pub use conversation::{Answers, Conversing, Later};
pub use door::Admitted;
pub use drain::Drain;
pub use framed::{Framed, Requests};
pub use http2::Http2Config;
pub use io::Gathered;
pub use listener::{BACKLOG, Listener};
pub use prompt::Prompt;
pub use time_left::time_left;

use self::answers::{Account, AnswerLayer};
use crate::admission::Admission;
use crate::status::{State, Status};
use crate::telemetry::RpcLayer;

/// How long connections that were cut may take to notice.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// How a server is to be run.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Settings and limits of connections.
    pub http2: Http2Config,
    /// What gRPC health says.
    pub status: Status,
    /// What is told to streams when the server drains.
    pub drain: Drain,
}

/// A running server. Dropping it stops it at once (and begins the [`Drain`] it shares with others).
#[derive(Debug)]
pub struct Running {
    /// `None` once it has ended and said how.
    task: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
    options: ServeOptions,
    health: Health,
    stop: CancellationToken,
    cut: CancellationToken,
    /// How many connections live.
    live: Arc<AtomicUsize>,
    health_task: AbortOnDropHandle<()>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything ended by itself.
    Clean,
    /// The deadline came first; this many connections were cut.
    Cut {
        /// How many.
        connections: usize,
    },
}

/// Serves `api` on the connections that `incoming` yields. The end of `incoming` ends nothing: the
/// connections it yielded go on.
pub fn serve<I, IO>(api: Api, incoming: I, options: ServeOptions) -> Result<Running, ApiError>
where
    I: Stream<Item = Admitted<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let methods = api.methods()?;
    let layer = RpcLayer::new(methods.iter().map(|(service, method)| (service.as_str(), method.as_str())));
    let health = Health::new(api.names());
    let routes = api.into_routes(health.service())?;

    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let live = Arc::new(AtomicUsize::new(0));
    let guard = io::Guard {
        cut: cut.clone(),
        preface_timeout: options.http2.preface_timeout,
        write_timeout: options.http2.write_timeout,
        gauge: metrics::gauge!("grpc_server_connections"),
        live: Arc::clone(&live),
    };
    let budget = Arc::new(Mutex::new(Admission::new(options.http2.of_waiting())));
    let guarded = incoming.map(move |Admitted { io, place }| {
        let account = Account::new(Arc::clone(&budget), place.ip());
        Ok::<_, std::io::Error>(guard.guard(io, place, account))
    });
    let answers = AnswerLayer::<IO::ConnectInfo>::new();
    let server = options.http2.server().layer(layer).layer(answers);
    // tonic takes the end of the stream for the word to stop.
    let guarded = guarded.chain(futures::stream::pending());
    let stopped = stop.clone().cancelled_owned();
    let task = tokio::spawn(server.serve_with_incoming_shutdown(routes, guarded, stopped));
    let health_task = AbortOnDropHandle::new(tokio::spawn(health.clone().follow(options.status.clone())));
    Ok(Running { task: Some(task), options, health, stop, cut, live, health_task })
}

impl Running {
    /// Resolves if the server ends without having been told to, which is a fault.
    pub async fn closed(&mut self) -> String {
        let Some(task) = &mut self.task else { return "the server has ended".into() };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(Ok(())) => "the server ended".into(),
            Ok(Err(error)) => format!("the server failed: {error}"),
            Err(error) => format!("the server failed: {error}"),
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Stops: health says so, streams are told, no connection is taken any more, clients are asked
    /// to leave (GOAWAY); what is still there at the deadline is cut.
    pub async fn drain(mut self, deadline: Duration) -> Drained {
        self.options.status.drain();
        // The last word on health is said below; nobody may speak after it.
        self.health_task.abort();
        let _ = (&mut self.health_task).await;
        self.health.stop().await;
        self.options.drain.begin();
        self.stop.cancel();
        if tokio::time::timeout(deadline, self.closed()).await.is_ok() {
            return Drained::Clean;
        }
        let connections = self.connections();
        self.cut.cancel();
        // A connection notices when it is polled next; a handler that blocks its thread can't.
        if tokio::time::timeout(CUT_GRACE, self.closed()).await.is_err() {
            tracing::error!(left = self.connections(), "connections did not end after they were cut");
        }
        Drained::Cut { connections }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.options.drain.begin();
        self.stop.cancel();
        self.cut.cancel();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// gRPC health of all services of a server: what the status says of the whole.
#[derive(Debug, Clone)]
struct Health {
    reporter: HealthReporter,
    names: Arc<[&'static str]>,
}

impl Health {
    fn new(names: &[&'static str]) -> Self {
        // The empty name is the whole server.
        let names = names.iter().copied().chain([""]).collect();
        Self { reporter: HealthReporter::new(), names }
    }

    fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    async fn say(&self, state: &State) {
        let status = if state.serves() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in self.names.iter() {
            self.reporter.set_service_status(name, status).await;
        }
    }

    fn follow(self, status: Status) -> impl Future<Output = ()> + Send {
        let mut changes = status.subscribe();
        async move {
            loop {
                let state = changes.borrow_and_update().clone();
                self.say(&state).await;
                if changes.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    /// Says the last word. Watchers hear it and then their streams end; they would run for ever and
    /// hold their connections.
    async fn stop(&mut self) {
        let stopped = State::NotReady(String::new());
        self.say(&stopped).await;
        for name in self.names.iter() {
            self.reporter.clear_service_status(name).await;
        }
        self.say(&stopped).await;
    }
}
