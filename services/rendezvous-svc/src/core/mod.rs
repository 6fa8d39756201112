//! What a rendezvous knows and decides. Pure: time and chance are arguments, nothing here does I/O, and nothing here has
//! seen a wire type.
//!
//! - [`table`]: the newest statement of each peer; [`services`]: who provides what.
//! - [`session`]: the peers that are here; [`presence`]: what other homes say of theirs, and by their [`marks`] how fresh that is.
//! - [`directory`]: the three together: who is where, and is it there? [`here`]: the peers that are here, by their ids.
//! - [`places`], [`row`]: what many peers are kept in, and what is due of them; `arena`, `index`: what places are made of.
//! - [`challenge`], [`admission`]: what a newcomer must answer, and how many there may be; [`ledger`]: who pays for what stays.
//! - [`members`]: the other members, and the links with them. [`bridge`]: this one's part in the backbone, made of
//!   [`ring`] and [`placement`]: who owns what; [`telling`], [`walk`], [`outbox`], [`delivery`], [`syncing`]: who is told what, and
//!   whether it arrived; [`lookup`]: who is asked; [`interest`], [`homes`]: who listens, and until when a home is believed;
//!   [`far`]: homes outside the ring; [`pace`], [`again`]: how much edges may say, and what they are asked to say once more.
//! - [`reconnect`]: when peers leave or come back, and where they are sent.
//! - [`watch`], [`resume`]: who follows whom, what each has still to be told, and where it goes on; [`watched`]: how many;
//!   [`progress`]: up to when all was told.
//! - [`confirm`], [`public`]: which addresses are dialed for others, how often, and by whom.
//! - [`own`]: this server's own record. [`page`], [`union`]: how a long answer is continued, and made of several. [`snapshot`]:
//!   what is taken along from one life to the next. [`seldom`]: what is not to flood the logs.

use std::time::Instant;

use p2psb_proto::model::UnixMillis;
pub use p2psb_runtime::admission;

pub mod again;
mod arena;
pub mod bridge;
pub mod challenge;
pub mod confirm;
pub mod delivery;
pub mod directory;
pub mod far;
pub mod here;
pub mod homes;
mod index;
pub mod interest;
pub mod ledger;
pub mod lookup;
pub mod marks;
pub mod members;
pub mod outbox;
pub mod own;
pub mod pace;
pub mod page;
pub mod placement;
pub mod places;
pub mod presence;
pub mod progress;
pub mod public;
pub mod reconnect;
pub mod resume;
pub mod ring;
pub mod row;
pub mod seldom;
pub mod services;
pub mod session;
pub mod snapshot;
mod statements;
pub mod syncing;
pub mod table;
pub mod telling;
#[cfg(test)]
pub(crate) mod testing;
pub mod union;
pub mod walk;
pub mod watch;
pub mod watched;

/// One moment on both clocks: what is signed counts by the wall, what is waited for by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For deadlines and ages.
    pub mono: Instant,
    /// For what is signed or shown.
    pub wall: UnixMillis,
}

impl Now {
    /// What the wall showed, or will show, at `at`.
    #[must_use]
    pub fn wall_at(&self, at: Instant) -> UnixMillis {
        match at.checked_duration_since(self.mono) {
            Some(ahead) => self.wall.plus(ahead),
            None => self.wall.minus(self.mono.duration_since(at)),
        }
    }

    /// How long ago `at` was; zero if it is to come.
    #[must_use]
    pub fn age(&self, at: Instant) -> std::time::Duration {
        self.mono.saturating_duration_since(at)
    }
}
