//! Stateless challenges for unary calls: a keyed hash of peer, source network and minute. Whoever answers one was here, from
//! this network, this minute or the one before; the server remembers nothing.

use std::net::IpAddr;
use std::time::Duration;

use p2psb_proto::model::{PeerId, UnixMillis};

use super::admission::Source;

const MINUTE: u64 = 60_000;

/// The challenge was never given, or not to this peer from this network, or too long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the challenge is not, or no longer, one for this peer and address; call GetChallenge and sign anew")]
pub struct ChallengeExpired;

/// Gives and recognises challenges.
pub struct Challenges {
    key: [u8; 32],
}

impl Challenges {
    /// With a secret that nobody else has.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// A challenge for `peer` at `now`, and how long it holds at least.
    #[must_use]
    pub fn give(&self, peer: &PeerId, from: Option<IpAddr>, now: UnixMillis) -> ([u8; 32], Duration) {
        let left = 2 * MINUTE - now.0 % MINUTE;
        (*self.hash(peer, from, now.0 / MINUTE).as_bytes(), Duration::from_millis(left))
    }

    /// Recognises one.
    pub fn check(
        &self,
        challenge: &[u8],
        peer: &PeerId,
        from: Option<IpAddr>,
        now: UnixMillis,
    ) -> Result<(), ChallengeExpired> {
        let minute = now.0 / MINUTE;
        // Equality of hashes takes the same time wherever they differ.
        let fits = |minute| self.hash(peer, from, minute) == *challenge;
        if fits(minute) || minute.checked_sub(1).is_some_and(fits) { Ok(()) } else { Err(ChallengeExpired) }
    }

    fn hash(&self, peer: &PeerId, from: Option<IpAddr>, minute: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&peer.to_bytes()).update(&minute.to_le_bytes());
        match from.map(Source::network) {
            None => hasher.update(&[0]),
            Some(Source::V4(network, _)) => hasher.update(&[4]).update(&network.to_le_bytes()),
            Some(Source::V6(network, _)) => hasher.update(&[6]).update(&network.to_le_bytes()),
        };
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{T0, peer};

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_challenge_holds_this_minute_and_the_next() {
        let challenges = Challenges::new([7; 32]);
        let from = ip("192.0.2.1");
        let given = UnixMillis(T0.0 / MINUTE * MINUTE + 59_000);
        let (challenge, ttl) = challenges.give(&peer(1), from, given);
        assert_eq!(ttl, Duration::from_secs(61));
        let at = |millis| challenges.check(&challenge, &peer(1), from, UnixMillis(given.0 + millis));
        assert_eq!(at(0), Ok(()));
        assert_eq!(at(60_999), Ok(()));
        assert_eq!(at(61_000), Err(ChallengeExpired));
    }

    #[test]
    fn a_challenge_is_for_one_peer_from_one_network_by_one_server() {
        let challenges = Challenges::new([7; 32]);
        let (challenge, _) = challenges.give(&peer(1), ip("192.0.2.1"), T0);
        assert_eq!(challenges.check(&challenge, &peer(1), ip("192.0.2.200"), T0), Ok(()));
        for (peer, from) in
            [(peer(2), ip("192.0.2.1")), (peer(1), ip("192.0.3.1")), (peer(1), None), (peer(1), ip("::1"))]
        {
            assert_eq!(challenges.check(&challenge, &peer, from, T0), Err(ChallengeExpired));
        }
        let other = Challenges::new([8; 32]);
        assert_eq!(other.check(&challenge, &peer(1), ip("192.0.2.1"), T0), Err(ChallengeExpired));
        assert_eq!(challenges.check(&[], &peer(1), ip("192.0.2.1"), T0), Err(ChallengeExpired));
    }
}
