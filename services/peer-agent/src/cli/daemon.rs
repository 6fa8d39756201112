//! The way to the running agent: `control.json`, loopback, token.

use std::path::Path;
use std::time::Duration;

use p2psb_proto::error::{Failure, Reason, reason_of};
use p2psb_proto::model::limits;
use p2psb_proto::wire::agent::v1::agent_service_client::AgentServiceClient;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::Problem;
use crate::control::file::{Control, ControlError};
use crate::control::token::Show;
use crate::failure::from_status;

const CONNECT: Duration = Duration::from_secs(3);

/// The agent.
pub(super) type Daemon = AgentServiceClient<InterceptedService<Channel, Show>>;

/// Connects to the agent of a data folder.
pub(super) async fn connect(data_dir: &Path) -> Result<Daemon, Problem> {
    let gone = |problem: String| Problem::Unavailable(Failure::new(Reason::Unreachable, problem));
    let control = match Control::read(data_dir) {
        Ok(control) => control,
        Err(error @ ControlError::NotRunning(_)) => return Err(gone(error.to_string())),
        Err(error) => return Err(Problem::Failed(Failure::new(Reason::StorageFailed, error.to_string()))),
    };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", control.addr))
        .map_err(|error| Failure::new(Reason::StorageFailed, format!("control.json: {error}")))?
        .connect_timeout(CONNECT);
    let channel = endpoint.connect().await.map_err(|_| {
        gone(format!(
            "no agent answers at {}, where one was running (pid {}); start it with `peer-agent run`",
            control.addr, control.pid
        ))
    })?;
    Ok(AgentServiceClient::with_interceptor(channel, Show(control.token))
        .max_decoding_message_size(limits::MESSAGE_BYTES))
}

/// What a failed call means. A status that is not the agent's own says that the agent went away.
pub(super) fn failed(status: &Status) -> Problem {
    match reason_of(status) {
        Some(Reason::Draining) => Problem::Unavailable(from_status(status)),
        Some(_) => Problem::Failed(from_status(status)),
        None => {
            let problem = format!("the agent went away: {}", status.message());
            Problem::Unavailable(Failure::new(Reason::Unreachable, problem))
        }
    }
}
