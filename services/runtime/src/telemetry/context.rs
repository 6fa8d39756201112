//! W3C trace context across calls: out of the headers of a call that came in, into those of a call
//! that goes out. Does nothing, cheaply, while nothing is traced.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::global::get_text_map_propagator;
use opentelemetry::propagation::{Extractor, Injector};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::is_tracing;

/// Writes the context of the current span into the headers of an outgoing call.
pub fn inject(headers: &mut HeaderMap) {
    if is_tracing() {
        let context = Span::current().context();
        get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Into(headers)));
    }
}

/// [`inject`], for gRPC metadata.
pub fn inject_metadata(metadata: &mut tonic::metadata::MetadataMap) {
    inject(metadata.as_mut());
}

/// [`inject`], as a tonic interceptor for clients: `Client::with_interceptor(channel, inject_request)`.
///
/// # Errors
/// None; the type is what interceptors have.
#[allow(clippy::result_large_err)]
pub fn inject_request(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    inject_metadata(request.metadata_mut());
    Ok(request)
}

/// The context an incoming call carries.
pub(super) fn extract(headers: &HeaderMap) -> Context {
    get_text_map_propagator(|propagator| propagator.extract(&From(headers)))
}

struct Into<'a>(&'a mut HeaderMap);

impl Injector for Into<'_> {
    fn set(&mut self, key: &str, value: String) {
        // The propagator writes valid names and values; anything else is left out.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct From<'a>(&'a HeaderMap);

impl Extractor for From<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
