//! How a long answer is continued: the place of the provider that was looked at last. Its token belongs to its query; any
//! server of the backbone understands it.

use p2psb_proto::model::page::{self, PageTokenError};
use p2psb_proto::model::{PeerId, ServiceQuery};

const ID_BYTES: usize = 33;
const PLACE_BYTES: usize = 1 + ID_BYTES;

/// Providers that are online come first, then the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that are online.
    Online,
    /// The others.
    Rest,
}

/// The place behind a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Where in the answer.
    pub part: Part,
    /// The last one that was looked at.
    pub after: PeerId,
}

impl Cursor {
    /// The token, for a query.
    #[must_use]
    pub fn to_token(self, query: &ServiceQuery) -> String {
        let mut place = [0; PLACE_BYTES];
        let part = match self.part {
            Part::Online => 0,
            Part::Rest => 1,
        };
        for (to, from) in place.iter_mut().zip(std::iter::once(part).chain(self.after.to_bytes())) {
            *to = from;
        }
        page::token(&query.digest(), &place)
    }

    /// Parses a token of a query; an empty one is the beginning.
    pub fn parse(token: &str, query: &ServiceQuery) -> Result<Option<Self>, PageTokenError> {
        if token.is_empty() {
            return Ok(None);
        }
        let [part, id @ ..] = page::place::<PLACE_BYTES>(&query.digest(), token)?;
        let part = match part {
            0 => Part::Online,
            1 => Part::Rest,
            _ => return Err(PageTokenError::Damaged),
        };
        let after = PeerId::from_slice(&id).map_err(|_| PageTokenError::Damaged)?;
        Ok(Some(Self { part, after }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{peer, query};

    #[test]
    fn a_token_leads_back_to_its_place() {
        for part in [Part::Online, Part::Rest] {
            let cursor = Cursor { part, after: peer(1) };
            assert_eq!(Cursor::parse(&cursor.to_token(&query("chat")), &query("chat")), Ok(Some(cursor)));
        }
        assert_eq!(Cursor::parse("", &query("chat")), Ok(None));
    }

    #[test]
    fn a_token_of_another_query_or_of_nobody_is_refused() {
        let chat = query("chat");
        let token = Cursor { part: Part::Online, after: peer(1) }.to_token(&chat);
        assert_eq!(Cursor::parse(&token, &query("other")), Err(PageTokenError::OtherQuery));
        let filtered = chat.clone().having("region", ["eu"]).unwrap();
        assert_eq!(Cursor::parse(&token, &filtered), Err(PageTokenError::OtherQuery));
        assert_eq!(Cursor::parse(&token[2..], &chat), Err(PageTokenError::Damaged));
        assert_eq!(Cursor::parse("x", &chat), Err(PageTokenError::Damaged));
        let mut nobody = [0; PLACE_BYTES];
        for (part, id) in [(0, 9), (7, 1)] {
            (nobody[0], nobody[1]) = (part, id);
            let token = page::token(&chat.digest(), &nobody);
            assert_eq!(Cursor::parse(&token, &chat), Err(PageTokenError::Damaged), "well made, but no place");
        }
    }
}
