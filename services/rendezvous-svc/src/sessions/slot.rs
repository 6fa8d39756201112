//! Places for sessions. There are only so many, in all and from one network; but who comes is known only when it has proven itself,
//! and a peer whose old session has not ended yet, because its network broke, takes no more room than before.
//!
//! Promise: a peer that has a session here can open a newer one in its place, however full it is. For those who may be such a
//! peer there are a few places more, until they have proven themselves: see [`RETURNING`].

use std::net::IpAddr;
use std::sync::Arc;

use crate::core::admission::{LimitReached, Limits};
use crate::node::Node;

/// How many may prove at once that they have a session here already. The first proof has to come within 5 s, so every second a few
/// of those behind one address come through; each refusal names the limit of sessions that is reached.
pub(crate) const RETURNING: Limits =
    Limits { total: (256, "returning"), per_ip: (16, "returning"), per_prefix: (64, "returning") };

/// A place among the sessions, given back when dropped.
pub(super) struct Slot {
    node: Arc<Node>,
    from: Option<IpAddr>,
    /// There is no room, unless it is a peer that has a session here: this says why.
    unproven: Option<LimitReached>,
}

impl Slot {
    pub(super) fn take(node: &Arc<Node>, from: Option<IpAddr>) -> Result<Self, LimitReached> {
        let unproven = node.sessions.lock().enter(from).err();
        if let Some(reached) = unproven {
            node.returning.lock().enter(from).map_err(|_| reached)?;
        }
        Ok(Self { node: Arc::clone(node), from, unproven })
    }

    /// Now it is known who it is: a peer whose session here ends for this one, or another one, for whom there has to be room.
    pub(super) fn prove(&mut self, has_session: bool) -> Result<(), LimitReached> {
        if self.unproven.is_none() {
            return Ok(());
        }
        if has_session {
            self.node.sessions.lock().count(self.from);
        } else {
            self.node.sessions.lock().enter(self.from)?;
        }
        self.node.returning.lock().leave(self.from);
        self.unproven = None;
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let places = if self.unproven.is_some() { &self.node.returning } else { &self.node.sessions };
        places.lock().leave(self.from);
    }
}
