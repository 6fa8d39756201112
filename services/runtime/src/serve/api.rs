//! Which gRPC services a server offers, with health and reflection of exactly these.

use std::convert::Infallible;

use http::Request;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tower::Service;

/// Health is offered by every server.
const HEALTH: &str = "grpc.health.v1.Health";

/// Services on their way into a server.
#[derive(Debug, Clone, Default)]
pub struct Api {
    routes: RoutesBuilder,
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
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// The full names of the services added.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// The routes, with health and reflection (v1 and v1alpha).
    pub(super) fn into_routes<H>(mut self, health: H) -> Result<tonic::service::Routes, ApiError>
    where
        H: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        H::Response: axum::response::IntoResponse,
        H::Future: Send + 'static,
    {
        self.routes.add_service(health);
        self.routes.add_service(self.reflection("grpc.reflection.v1.ServerReflection").build_v1()?);
        self.routes.add_service(self.reflection("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?);
        Ok(self.routes.routes())
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
