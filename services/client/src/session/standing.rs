//! What the sessions together mean: whether others can find this peer.

use tokio_util::sync::CancellationToken;

use super::{SessionKeeper, SessionState, SessionStatus};

/// Why nobody finds a peer: it is registered nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unregistered {
    /// Nowhere to register.
    #[error("no rendezvous is configured")]
    NowhereToGo,
    /// No answer so far.
    #[error("still connecting")]
    Connecting,
    /// What went wrong at one of the rendezvous.
    #[error("{0}")]
    Failed(String),
}

impl SessionKeeper {
    /// Tells how the peer stands, now and whenever a session changes, until it is to stop.
    pub async fn follow(&self, stop: &CancellationToken, mut tell: impl FnMut(Result<(), Unregistered>)) {
        let mut changes = self.changes();
        loop {
            tell(standing(&self.status()));
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }
}

/// A peer is registered if any rendezvous but its own is its home.
fn standing(sessions: &[SessionStatus]) -> Result<(), Unregistered> {
    let mut sessions = sessions.iter().filter(|session| !session.own).peekable();
    if sessions.clone().any(|session| session.state == SessionState::Online) {
        return Ok(());
    }
    if sessions.peek().is_none() {
        return Err(Unregistered::NowhereToGo);
    }
    let failure = sessions.find_map(|session| match &session.state {
        SessionState::Failed { error, .. } => Some(Unregistered::Failed(error.clone())),
        SessionState::Connecting | SessionState::Online | SessionState::Standby => None,
    });
    Err(failure.unwrap_or(Unregistered::Connecting))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(state: SessionState) -> SessionStatus {
        SessionStatus {
            endpoint: "https://r.example:7400".parse().unwrap(),
            configured: true,
            own: false,
            server_id: None,
            state,
            observed: None,
            latency: None,
            sessions: 0,
        }
    }

    #[test]
    fn one_home_is_enough_to_be_found_and_without_one_a_failure_says_why() {
        let failed =
            || SessionState::Failed { error: "refused".into(), retry_at: tokio::time::Instant::now() };
        let of = |states: Vec<SessionState>| standing(&states.into_iter().map(session).collect::<Vec<_>>());
        assert_eq!(of(Vec::new()), Err(Unregistered::NowhereToGo));
        assert_eq!(of(vec![SessionState::Connecting, SessionState::Standby]), Err(Unregistered::Connecting));
        let error = of(vec![SessionState::Connecting, failed()]).unwrap_err();
        assert_eq!(error.to_string(), "refused");
        assert_eq!(of(vec![failed(), SessionState::Online]), Ok(()));
        let own = SessionStatus { own: true, ..session(SessionState::Online) };
        assert_eq!(standing(std::slice::from_ref(&own)), Err(Unregistered::NowhereToGo));
        let error = standing(&[own, session(failed())]).unwrap_err();
        assert_eq!(error.to_string(), "refused", "who is found at its own rendezvous only is hard to find");
    }
}
