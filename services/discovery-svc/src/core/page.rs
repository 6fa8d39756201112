//! Pages over providers in order of their ids. A token names the last id of its page, so that providers that come or go meanwhile
//! neither repeat nor hide others; it belongs to its query.

use p2psb_proto::model::page::{self, PageTokenError};
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{PeerId, ServiceQuery, limits};

const ID_BYTES: usize = 33;

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The providers.
    pub peers: Vec<LocatedPeer>,
    /// The last of them, if more follow.
    pub next: Option<PeerId>,
}

/// The token of the page behind `last` in the answer to a query.
#[must_use]
pub fn token(last: &PeerId, query: &ServiceQuery) -> String {
    page::token::<ID_BYTES>(&query.digest(), &last.to_bytes())
}

/// Behind whom the page begins that a token of this query asks for; an empty one is the beginning.
pub fn after(token: &str, query: &ServiceQuery) -> Result<Option<PeerId>, PageTokenError> {
    if token.is_empty() {
        return Ok(None);
    }
    let id = page::place::<ID_BYTES>(&query.digest(), token)?;
    PeerId::from_slice(&id).map(Some).map_err(|_| PageTokenError::Damaged)
}

/// What follows `after` in `peers` (which are in order of their ids), at most `size` of them and at most a page's bytes.
#[must_use]
pub fn page(
    peers: Vec<LocatedPeer>,
    after: Option<PeerId>,
    size: usize,
    bytes_of: impl Fn(&LocatedPeer) -> usize,
) -> Page {
    let mut rest = peers.into_iter().filter(|p| after.is_none_or(|after| p.peer_id() > after)).peekable();
    let mut peers: Vec<LocatedPeer> = Vec::new();
    let mut bytes = 0;
    while let Some(next) = rest.peek() {
        bytes += bytes_of(next);
        if peers.len() == size || (bytes > limits::PAGE_BYTES && !peers.is_empty()) {
            let next = peers.last().map(LocatedPeer::peer_id);
            return Page { peers, next };
        }
        peers.extend(rest.next());
    }
    Page { peers, next: None }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use p2psb_proto::model::presence::{Presence, PresenceSource, PresenceState};
    use p2psb_proto::model::{Genesis, PeerRecord, SecretKey, ServiceName, Signed, UnixMillis};

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
        let (mut seen, mut at) = (Vec::new(), None);
        loop {
            let page = page(peers(7), at, size, |_| bytes);
            seen.extend(page.peers.iter().map(LocatedPeer::peer_id));
            let Some(last) = page.next else { return seen };
            at = after(&token(&last, &query("chat")), &query("chat")).unwrap();
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

    fn query(service: &str) -> ServiceQuery {
        service.parse::<ServiceName>().unwrap().into()
    }

    #[test]
    fn a_foreign_token_is_refused() {
        let last = peers(1)[0].peer_id();
        let given = token(&last, &query("chat"));
        assert_eq!(after("", &query("chat")), Ok(None));
        assert_eq!(after("x", &query("chat")), Err(PageTokenError::Damaged));
        assert_eq!(after(&last.to_string(), &query("chat")), Err(PageTokenError::Damaged));
        assert_eq!(after(&given, &query("mail")), Err(PageTokenError::OtherQuery));
        let filtered = query("chat").having("region", ["eu"]).unwrap();
        assert_eq!(after(&given, &filtered), Err(PageTokenError::OtherQuery));
    }
}
