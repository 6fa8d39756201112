//! Services inside this process, entered by the same door as their programs: `bind` with a configuration as it is written.

use std::time::Duration;

use p2psb_client::Endpoint;
use p2psb_runtime::{Service, Settings};

use crate::trouble::{Context as _, Result};

/// How long calls may take to end when a service is stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// Binds a service.
pub async fn bind<S: Service>(settings: S::Settings) -> Result<S> {
    let meant = settings.meant().context("the configuration")?;
    S::bind(meant).await.context("binding")
}

/// How a service that speaks TLS is dialed.
pub fn endpoint<S: Service>(service: &S) -> Result<Endpoint> {
    let text = format!("https://{}", service.addr());
    text.parse().context(text)
}

/// Stops a service as its program would after SIGTERM.
pub async fn stop<S: Service>(service: S) {
    service.shutdown(DRAIN).await;
}
