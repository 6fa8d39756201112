//! Pages over providers in order of their ids. A token names the last id of its page, so that providers that come or go meanwhile
//! neither repeat nor hide others.

use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{PeerId, limits};

/// A token that is none of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the page token is not one of this query; begin again without one")]
pub struct TokenError;

/// What follows `token` in `peers` (which are in order of their ids), at most `size` of them and at most a page's bytes, and the token
/// of the next page, empty at the end.
pub fn page(
    peers: Vec<LocatedPeer>,
    token: &str,
    size: usize,
    bytes_of: impl Fn(&LocatedPeer) -> usize,
) -> Result<(Vec<LocatedPeer>, String), TokenError> {
    let after = if token.is_empty() { None } else { Some(token.parse::<PeerId>().map_err(|_| TokenError)?) };
    let mut rest = peers.into_iter().filter(|p| after.is_none_or(|after| p.peer_id() > after)).peekable();
    let mut taken: Vec<LocatedPeer> = Vec::new();
    let mut bytes = 0;
    while let Some(next) = rest.peek() {
        bytes += bytes_of(next);
        if taken.len() == size || (bytes > limits::PAGE_BYTES && !taken.is_empty()) {
            let last = taken.last().map(|p| p.peer_id().to_string()).unwrap_or_default();
            return Ok((taken, last));
        }
        taken.extend(rest.next());
    }
    Ok((taken, String::new()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use p2psb_proto::model::presence::{Presence, PresenceSource, PresenceState};
    use p2psb_proto::model::{Genesis, PeerRecord, SecretKey, Signed, UnixMillis};

    use super::*;

    fn peers(count: u8) -> Vec<LocatedPeer> {
        let now = UnixMillis(1_800_000_000_000);
        let record = PeerRecord {
            network: Genesis::open("test").unwrap().network_id(),
            seq: now.0,
            issued: now,
            expires: now.plus(Duration::from_secs(60)),
            addresses: vec![],
            services: vec![],
            homes: vec![],
            endorsements: vec![],
        };
        let presence = Presence {
            state: PresenceState::Online,
            last_seen: now,
            as_of: now,
            source: PresenceSource::Session,
            home: None,
        };
        let mut all: Vec<_> = (1..=count)
            .map(|n| Signed::sign(&record, &SecretKey::from_seed(&[n; 32])).unwrap())
            .map(|record| LocatedPeer { record, presence: presence.clone() })
            .collect();
        all.sort_by_key(LocatedPeer::peer_id);
        all
    }

    fn walk(size: usize, bytes: usize) -> Vec<PeerId> {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (got, next) = page(peers(7), &token, size, |_| bytes).unwrap();
            seen.extend(got.iter().map(LocatedPeer::peer_id));
            if next.is_empty() {
                return seen;
            }
            token = next;
        }
    }

    #[test]
    fn every_size_of_page_yields_everyone_once() {
        let all: Vec<_> = peers(7).iter().map(LocatedPeer::peer_id).collect();
        for size in 1..=8 {
            assert_eq!(walk(size, 1), all, "pages of {size}");
        }
        assert_eq!(walk(1000, limits::PAGE_BYTES), all, "pages cut by bytes");
    }

    #[test]
    fn a_foreign_token_is_refused() {
        assert_eq!(page(peers(1), "x", 5, |_| 1), Err(TokenError));
    }
}
