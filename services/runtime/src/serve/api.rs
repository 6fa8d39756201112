//! Which gRPC services a server offers, with health and reflection of exactly these.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{BoxFuture, TryFutureExt as _};
use http::{Request, Response};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::server::NamedService;
use tower::{BoxError, Service};

/// Health is offered by every server.
const HEALTH: &str = "grpc.health.v1.Health";

/// What tonic generates for a service, and what is put around one: it is always ready to be called.
pub trait GrpcService<B = Body>:
    Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S, B> GrpcService<B> for S where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// What a service may answer with.
pub trait AnswerBody: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static {}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static> AnswerBody for B {}

type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// A service under its name.
#[derive(Clone)]
struct Route {
    name: &'static str,
    call: Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>,
}

impl Route {
    fn of<B: AnswerBody, S: GrpcService<B> + NamedService>(service: S) -> Self {
        let call = move |request| -> Answer {
            // A body that is tonic's own already is not wrapped again.
            Box::pin(service.clone().call(request).map_ok(|response| response.map(Body::new)))
        };
        Self { name: S::NAME, call: Arc::new(call) }
    }

    fn is_of(&self, path: &str) -> bool {
        let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(self.name));
        method.is_some_and(|method| method.starts_with('/'))
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Passes each call to the service that its path names. There are a handful, so they are simply compared: a router for any
/// kind of path costs a microsecond of every call.
#[derive(Debug, Clone)]
pub(super) struct Routes(Arc<[Route]>);

impl Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        match self.0.iter().find(|route| route.is_of(request.uri().path())) {
            Some(route) => (route.call)(request),
            None => Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        }
    }
}

/// Services on their way into a server.
#[derive(Debug, Clone, Default)]
pub struct Api {
    routes: Vec<Route>,
    names: Vec<&'static str>,
    descriptors: Vec<&'static [u8]>,
}

/// A descriptor set given to a server is broken.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It is no descriptor set.
    #[error("a descriptor set of the served contracts is broken: {0}")]
    Descriptor(#[from] prost::DecodeError),
    /// It does not fit together.
    #[error("reflection of the served contracts is not possible: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Api {
    /// An API without services yet. `descriptors` are encoded `FileDescriptorSet`s that describe
    /// (at least) the services that will be added.
    pub fn new(descriptors: &[&'static [u8]]) -> Self {
        let mut descriptors = descriptors.to_vec();
        descriptors.push(tonic_health::pb::FILE_DESCRIPTOR_SET);
        Self { descriptors, ..Self::default() }
    }

    /// Adds a service.
    pub fn add_service<B: AnswerBody, S>(mut self, service: S) -> Self
    where
        S: GrpcService<B> + NamedService,
    {
        self.routes.push(Route::of(service));
        self.names.push(S::NAME);
        self
    }

    /// The full names of the services added.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// The routes, with health and reflection (v1 and v1alpha).
    pub(super) fn into_routes(mut self, health: impl GrpcService + NamedService) -> Result<Routes, ApiError> {
        self.routes.push(Route::of(health));
        self.routes.push(Route::of(self.reflection("grpc.reflection.v1.ServerReflection").build_v1()?));
        self.routes
            .push(Route::of(self.reflection("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?));
        Ok(Routes(self.routes.into()))
    }

    fn reflection(&self, own: &'static str) -> tonic_reflection::server::Builder<'static> {
        let mut builder = tonic_reflection::server::Builder::configure();
        for descriptor in &self.descriptors {
            builder = builder.register_encoded_file_descriptor_set(descriptor);
        }
        // Contracts may describe more services than this server has; it names only its own.
        self.names
            .iter()
            .chain([&HEALTH, &own])
            .fold(builder, |builder, name| builder.with_service_name(*name))
    }

    /// Every method of the services added, and of health: (service, method).
    pub(super) fn methods(&self) -> Result<Vec<(String, String)>, ApiError> {
        let mut methods = Vec::new();
        for descriptor in &self.descriptors {
            for file in FileDescriptorSet::decode(*descriptor)?.file {
                let prefix = file.package().to_owned();
                for service in &file.service {
                    let name = format!("{prefix}.{}", service.name());
                    if name == HEALTH || self.names.contains(&name.as_str()) {
                        methods.extend(
                            service.method.iter().map(|method| (name.clone(), method.name().to_owned())),
                        );
                    }
                }
            }
        }
        Ok(methods)
    }
}
