//! Logs to standard error, and traces to an OpenTelemetry collector where one is configured.
//!
//! Promises: logs are one JSON object a line when nobody sits at a terminal, with `message` and the
//! fields of the event at the top level; without a collector no span of a call is made, so tracing
//! costs nothing; what was traced is flushed by [`Telemetry::shutdown`] within [`FLUSH_TIMEOUT`].

mod context;
mod rpc;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub use context::{inject, inject_metadata, inject_request};
pub use rpc::{Outcome, RpcLayer, RpcService};

use crate::config::{LogFormat, TelemetryConfig};

/// How long the last spans may take to reach the collector when the program ends.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is never traced: the exporter's own calls would feed the exporter.
const UNTRACED: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off,\
                        opentelemetry_sdk=off,opentelemetry_otlp=off";

/// Whether calls are traced; read once a call.
static TRACING: AtomicBool = AtomicBool::new(false);

/// Whether spans go to a collector.
pub fn is_tracing() -> bool {
    TRACING.load(Ordering::Relaxed)
}

/// Telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter can't be parsed.
    #[error("telemetry.log.filter is wrong: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter can't be made.
    #[error("cannot export traces to telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Somebody else started it already.
    #[error("telemetry was started twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Running telemetry; end it with [`Telemetry::shutdown`].
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Starts logs and, if configured, traces, for the whole process. Needs a tokio runtime.
pub fn init(
    name: &'static str,
    version: &'static str,
    config: &TelemetryConfig,
) -> Result<Telemetry, TelemetryError> {
    let logs = log_layer(config.log.format).with_filter(EnvFilter::try_new(&config.log.filter)?);
    let provider = match &config.otlp_endpoint {
        Some(endpoint) => Some(provider(name, version, endpoint, config.sample_ratio)?),
        None => None,
    };
    let traces = match &provider {
        Some(provider) => {
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(name));
            Some(layer.with_filter(EnvFilter::try_new(UNTRACED)?))
        }
        None => None,
    };
    tracing_subscriber::registry().with(logs).with(traces).try_init()?;
    if let Some(provider) = &provider {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        opentelemetry::global::set_tracer_provider(provider.clone());
        TRACING.store(true, Ordering::Relaxed);
    }
    Ok(Telemetry { provider })
}

fn log_layer(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let terminal = std::io::stderr().is_terminal();
    let pretty = match format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if pretty {
        layer.with_ansi(terminal).boxed()
    } else {
        // One span is enough beside an event; the list of them all would only repeat it.
        layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    }
}

fn provider(
    name: &'static str,
    version: &'static str,
    endpoint: &str,
    ratio: f64,
) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let resource = Resource::builder()
        .with_service_name(name)
        .with_attribute(opentelemetry::KeyValue::new("service.version", version))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_resource(resource)
        .build())
}

impl Telemetry {
    /// Sends what is left to the collector. An unreachable collector is logged and nothing more.
    pub async fn shutdown(self) {
        TRACING.store(false, Ordering::Relaxed);
        let Some(provider) = self.provider else { return };
        // The exporter needs this runtime's threads, so none of them may wait for it.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last traces did not reach the collector"),
            Err(error) => tracing::warn!(%error, "flushing traces failed"),
        }
    }
}
