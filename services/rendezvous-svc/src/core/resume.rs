//! Where a watch has come to, as a token: it holds for the same peers, at the same server, in the same life of it. Forging one
//! only makes its forger miss something.
//!
//! A change that happens is in the log of the watches, whether the peer is watched or not. What time does to a peer, and the
//! end of its home, leaves a trace only while somebody watches it. So the token names what was told of each peer, and whoever
//! comes back with it is told of those that are something else by now.

use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;

use super::directory::{Located, NotLocated};

const TAG_BYTES: usize = 16;
const REVISION_BYTES: usize = 8;
/// What was told of four peers.
const TOLD_IN_BYTE: usize = 4;

/// What was told of a peer last, as far as that changes without an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// It has no valid record; also before anything was told.
    #[default]
    Gone,
    /// It is there.
    Online,
    /// It may be there.
    Suspect,
    /// It is not there.
    Offline,
}

impl Told {
    /// By what was found.
    #[must_use]
    pub fn of(found: &Result<Located, NotLocated>) -> Self {
        match found.as_ref().map(|found| found.presence.state) {
            Err(_) => Self::Gone,
            Ok(PresenceState::Online) => Self::Online,
            Ok(PresenceState::Suspect) => Self::Suspect,
            Ok(PresenceState::Offline | PresenceState::Unspecified) => Self::Offline,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Gone => 0,
            Self::Online => 1,
            Self::Suspect => 2,
            Self::Offline => 3,
        }
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Gone,
            1 => Self::Online,
            2 => Self::Suspect,
            _ => Self::Offline,
        }
    }
}

/// Where a watch was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// All changes up to this one were told.
    pub revision: u64,
    /// What was told of each peer last.
    pub told: Vec<(PeerId, Told)>,
}

/// The tokens of one watch, and what they are made of.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Of server, life, and peers.
    tag: [u8; TAG_BYTES],
    /// In the order of ids.
    told: Box<[(PeerId, Told)]>,
}

impl Resume {
    /// Tokens of a watch of `peers`, in whatever order, at `server` in the life that `epoch` names.
    #[must_use]
    pub fn new(server: PeerId, epoch: u64, peers: &[PeerId]) -> Self {
        let mut told: Box<[(PeerId, Told)]> = peers.iter().map(|peer| (*peer, Told::default())).collect();
        told.sort_unstable_by_key(|(peer, _)| *peer);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&server.to_bytes()).update(&epoch.to_le_bytes());
        for (peer, _) in &told {
            hasher.update(&peer.to_bytes());
        }
        let mut tag = [0; TAG_BYTES];
        hasher.finalize_xof().fill(&mut tag);
        Self { tag, told }
    }

    /// This was told of a peer.
    pub fn told(&mut self, peer: &PeerId, told: Told) {
        let place = self.told.binary_search_by_key(peer, |(peer, _)| *peer);
        if let Some((_, before)) = place.ok().and_then(|place| self.told.get_mut(place)) {
            *before = told;
        }
    }

    /// The token of a revision.
    #[must_use]
    pub fn to_token(&self, revision: u64) -> String {
        let fours = self.told.chunks(TOLD_IN_BYTE);
        let told = fours.map(|four| four.iter().rev().fold(0, |byte, (_, told)| byte << 2 | told.bits()));
        let mut bytes = [&self.tag[..], &revision.to_le_bytes()].concat();
        bytes.extend(told);
        hex::encode(bytes)
    }

    /// What a token says; `None` if it is not one of this watch.
    #[must_use]
    pub fn parse(&self, token: &str) -> Option<Left> {
        let told_bytes = self.told.len().div_ceil(TOLD_IN_BYTE);
        let mut bytes = vec![0; TAG_BYTES + REVISION_BYTES + told_bytes];
        hex::decode_to_slice(token, &mut bytes).ok()?;
        let (tag, rest) = bytes.split_first_chunk::<TAG_BYTES>()?;
        let (revision, told) = rest.split_first_chunk::<REVISION_BYTES>()?;
        let told = told.iter().flat_map(|byte| [0, 2, 4, 6].map(|shift| Told::from_bits(byte >> shift)));
        let peers = self.told.iter().map(|(peer, _)| *peer);
        let revision = u64::from_le_bytes(*revision);
        (*tag == self.tag).then(|| Left { revision, told: peers.zip(told).collect() })
    }

    /// The watch goes on where it was left.
    pub fn goes_on(&mut self, from: &Left) {
        from.told.iter().for_each(|(peer, told)| self.told(peer, *told));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    fn of(server: u8, epoch: u64, peers: &[u8]) -> Resume {
        Resume::new(peer(server), epoch, &peers.iter().map(|n| peer(*n)).collect::<Vec<_>>())
    }

    #[test]
    fn a_token_holds_for_its_peers_server_and_life_only() {
        let token = of(1, 7, &[2, 3]).to_token(99);
        let parsed = |resume: &Resume, token: &str| resume.parse(token).map(|left| left.revision);
        assert_eq!(parsed(&of(1, 7, &[3, 2]), &token), Some(99));
        for other in [of(4, 7, &[2, 3]), of(1, 8, &[2, 3]), of(1, 7, &[2]), of(1, 7, &[2, 4])] {
            assert_eq!(other.parse(&token), None);
        }
        for garbage in ["", "zz", &token[2..], &format!("{token}00")] {
            assert_eq!(of(1, 7, &[2, 3]).parse(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_token_says_what_was_told_of_each_peer() {
        let numbers: Vec<u8> = (2..12).collect();
        let mut resume = of(1, 7, &numbers);
        let kinds = [Told::Gone, Told::Online, Told::Suspect, Told::Offline];
        let expected = |n: u8| kinds[usize::from(n) * 7 % 4];
        for n in &numbers {
            resume.told(&peer(*n), expected(*n));
        }
        resume.told(&peer(99), Told::Online);
        let left = of(1, 7, &numbers).parse(&resume.to_token(5)).unwrap();
        let told: std::collections::HashMap<_, _> = left.told.iter().copied().collect();
        for n in &numbers {
            assert_eq!(told[&peer(*n)], expected(*n));
        }
        let mut again = of(1, 7, &numbers);
        again.goes_on(&left);
        assert_eq!(again.to_token(5), resume.to_token(5));
    }
}
