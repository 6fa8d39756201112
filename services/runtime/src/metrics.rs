//! The endpoint for operators: `/metrics` for Prometheus, `/status` with reasons as JSON, and
//! `/healthz`, which says 200 or 503 so that orchestrators and the `health` verb need no gRPC.
//!
//! It is plain HTTP, meant for loopback or an inner network; it shows no secrets and changes nothing. A connection serves one request,
//! within a bounded time.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tower::limit::GlobalConcurrencyLimitLayer;

use crate::serve::{Admitted, Http2Config, Listener};
use crate::status::{Report, Status};

/// How often the recorder folds what histograms collected; between times it grows.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How many requests of operators are answered at a time.
const MAX_CONCURRENT_REQUESTS: usize = 16;

/// How many connections of operators there may be, and how many of them from one source.
const MAX_CONNECTIONS: usize = 64;
const MAX_CONNECTIONS_PER_SOURCE: usize = 16;

/// How long a request may take from its first byte to the last of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds of the histograms of seconds: from a cached answer to a long transfer.
const SECONDS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
    30.0, 300.0,
];

/// The recorder could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot start metrics: {0}")]
pub struct MetricsError(#[from] metrics_exporter_prometheus::BuildError);

/// The installed recorder.
#[derive(Debug, Clone)]
pub struct Recorder {
    handle: PrometheusHandle,
    name: &'static str,
    version: &'static str,
}

/// Installs the recorder of this process. Call it before anything that keeps handles of metrics.
pub fn install(name: &'static str, version: &'static str) -> Result<Recorder, MetricsError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    describe();
    metrics::gauge!("p2psb_build_info", "name" => name, "version" => version).set(1.0);
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics::gauge!("process_start_time_seconds").set(start.as_secs_f64());
    Ok(Recorder { handle, name, version })
}

fn describe() {
    metrics::describe_gauge!("p2psb_build_info", "1, with name and version of the program");
    metrics::describe_gauge!("process_start_time_seconds", "Unix time at which the process started");
    metrics::describe_counter!("grpc_server_handled_total", "calls ended, by service, method and code");
    metrics::describe_histogram!("grpc_server_handling_seconds", "duration of calls, streams included");
    metrics::describe_gauge!("grpc_server_in_flight", "calls running now");
    metrics::describe_gauge!("grpc_server_connections", "connections open now");
    metrics::describe_counter!(
        "grpc_server_connections_refused_total",
        "connections closed at once or in their handshake, by limit"
    );
    metrics::describe_counter!(
        "grpc_server_connections_stalled_total",
        "connections cut because the client took nothing of what was sent to it"
    );
    metrics::describe_counter!(
        "grpc_server_answers_refused_total",
        "answers ended because too much waits for slow readers, by limit"
    );
    metrics::describe_counter!("listener_accept_errors_total", "failures to accept a connection");
}

/// Serves the endpoint on a bound listener until the guard is dropped.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Admin {
    /// Begins to serve.
    pub fn serve(listener: Listener, recorder: Recorder, status: Status) -> Self {
        let addr = listener.addr();
        let upkeep = recorder.handle.clone();
        let app = router(recorder, status);
        let http = tokio::spawn(answer(listener, app));
        let upkeep = tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP_INTERVAL).await;
                upkeep.run_upkeep();
            }
        });
        Self { addr, _tasks: [AbortOnDropHandle::new(http), AbortOnDropHandle::new(upkeep)] }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Answers whoever comes through the door: one request each.
async fn answer(listener: Listener, app: Router) {
    let door = Http2Config {
        max_connections: MAX_CONNECTIONS,
        connections_per_ip: MAX_CONNECTIONS_PER_SOURCE,
        connections_per_prefix: MAX_CONNECTIONS_PER_SOURCE,
        ..Http2Config::default()
    };
    let mut connections = std::pin::pin!(listener.plaintext(&door));
    // Those that run end with this task.
    let mut running = JoinSet::new();
    while let Some(Admitted { io, place }) = connections.next().await {
        while running.try_join_next().is_some() {}
        let app = TowerToHyperService::new(app.clone());
        running.spawn(async move {
            let _place = place;
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(io), app);
            // Its caller sees what went wrong.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, connection).await;
        });
    }
}

#[derive(Debug, Clone)]
struct Seen {
    recorder: Recorder,
    status: Status,
}

fn router(recorder: Recorder, status: Status) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/status", get(status_json))
        .route("/healthz", get(healthz))
        .layer(GlobalConcurrencyLimitLayer::new(MAX_CONCURRENT_REQUESTS))
        .with_state(Seen { recorder, status })
}

async fn metrics_text(Shared(seen): Shared<Seen>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], seen.recorder.handle.render())
        .into_response()
}

#[derive(Serialize)]
struct StatusBody<'a> {
    name: &'a str,
    version: &'a str,
    #[serde(flatten)]
    report: Report,
}

async fn status_json(Shared(seen): Shared<Seen>) -> Response {
    let body =
        StatusBody { name: seen.recorder.name, version: seen.recorder.version, report: seen.status.report() };
    json(StatusCode::OK, &body)
}

async fn healthz(Shared(seen): Shared<Seen>) -> Response {
    let overall = seen.status.overall();
    let code = if overall.serves() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, &overall)
}

fn json(code: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (code, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
