//! Where a watch has come to, as a token: it holds for the same peers, at the same server, in the same life of it. Forging one
//! only makes its forger miss something.

use p2psb_proto::model::PeerId;

const TAG_BYTES: usize = 16;
const REVISION_BYTES: usize = 8;

/// The tokens of one watch.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// Of server, life, and peers.
    tag: [u8; TAG_BYTES],
}

impl Resume {
    /// Tokens of a watch of `peers`, in whatever order, at `server` in the life that `epoch` names.
    #[must_use]
    pub fn new(server: PeerId, epoch: u64, peers: &[PeerId]) -> Self {
        let mut sorted: Vec<&PeerId> = peers.iter().collect();
        sorted.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&server.to_bytes()).update(&epoch.to_le_bytes());
        for peer in sorted {
            hasher.update(&peer.to_bytes());
        }
        let mut tag = [0; TAG_BYTES];
        hasher.finalize_xof().fill(&mut tag);
        Self { tag }
    }

    /// The token of a revision.
    #[must_use]
    pub fn to_token(self, revision: u64) -> String {
        hex::encode([&self.tag[..], &revision.to_le_bytes()].concat())
    }

    /// The revision in a token; `None` if it is not one of this watch.
    #[must_use]
    pub fn parse(&self, token: &str) -> Option<u64> {
        let mut bytes = [0; TAG_BYTES + REVISION_BYTES];
        hex::decode_to_slice(token, &mut bytes).ok()?;
        let (tag, revision) = bytes.split_first_chunk::<TAG_BYTES>()?;
        (*tag == self.tag).then_some(u64::from_le_bytes(revision.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn a_token_holds_for_its_peers_server_and_life_only() {
        let of = |server, epoch, peers: &[u8]| {
            Resume::new(peer(server), epoch, &peers.iter().map(|n| peer(*n)).collect::<Vec<_>>())
        };
        let token = of(1, 7, &[2, 3]).to_token(99);
        assert_eq!(of(1, 7, &[3, 2]).parse(&token), Some(99));
        for other in [of(4, 7, &[2, 3]), of(1, 8, &[2, 3]), of(1, 7, &[2])] {
            assert_eq!(other.parse(&token), None);
        }
        for garbage in ["", "zz", &token[2..]] {
            assert_eq!(of(1, 7, &[2, 3]).parse(garbage), None, "{garbage}");
        }
    }
}
