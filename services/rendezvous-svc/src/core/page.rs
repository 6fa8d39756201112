//! How a long answer is continued: an opaque token that names the last item. It belongs to its query; any server of the
//! backbone understands it, and forging one is of no use.

use p2psb_proto::model::PeerId;

const VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;
const ID_BYTES: usize = 33;

/// Providers that are online come first, then the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that are online.
    Online,
    /// The others.
    Rest,
}

/// The place behind an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Where in the answer.
    pub part: Part,
    /// The last item.
    pub after: PeerId,
}

/// The token is not one of this query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page token is not one of this query; begin again without one")]
pub struct TokenInvalid;

impl Cursor {
    /// The token, for a query for `service`.
    #[must_use]
    pub fn to_token(self, service: &str) -> String {
        let body = self.body();
        hex::encode([&body[..], &check(service, &body)[..]].concat())
    }

    fn body(self) -> [u8; ID_BYTES + 2] {
        let mut body = [0; ID_BYTES + 2];
        let part = match self.part {
            Part::Online => 0,
            Part::Rest => 1,
        };
        for (to, from) in body.iter_mut().zip([VERSION, part].into_iter().chain(self.after.to_bytes())) {
            *to = from;
        }
        body
    }

    /// Parses a token of a query for `service`; an empty one is the beginning.
    pub fn parse(token: &str, service: &str) -> Result<Option<Self>, TokenInvalid> {
        if token.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0; ID_BYTES + 2 + CHECK_BYTES];
        hex::decode_to_slice(token, &mut bytes).map_err(|_| TokenInvalid)?;
        let (body, sum) = bytes.split_at_checked(ID_BYTES + 2).ok_or(TokenInvalid)?;
        let [VERSION, part, id @ ..] = body else { return Err(TokenInvalid) };
        let part = match part {
            0 => Part::Online,
            1 => Part::Rest,
            _ => return Err(TokenInvalid),
        };
        let after = PeerId::from_slice(id).map_err(|_| TokenInvalid)?;
        if check(service, body) == sum { Ok(Some(Self { part, after })) } else { Err(TokenInvalid) }
    }
}

fn check(service: &str, body: &[u8]) -> [u8; CHECK_BYTES] {
    let mut sum = [0; CHECK_BYTES];
    blake3::Hasher::new().update(body).update(service.as_bytes()).finalize_xof().fill(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn a_token_leads_back_to_its_place() {
        for part in [Part::Online, Part::Rest] {
            let cursor = Cursor { part, after: peer(1) };
            assert_eq!(Cursor::parse(&cursor.to_token("chat"), "chat"), Ok(Some(cursor)));
        }
        assert_eq!(Cursor::parse("", "chat"), Ok(None));
    }

    #[test]
    fn a_token_of_another_query_or_of_nobody_is_refused() {
        let token = Cursor { part: Part::Online, after: peer(1) }.to_token("chat");
        assert_eq!(Cursor::parse(&token, "other"), Err(TokenInvalid));
        assert_eq!(Cursor::parse(&token[2..], "chat"), Err(TokenInvalid));
        assert_eq!(Cursor::parse(&token.replacen("01", "02", 1), "chat"), Err(TokenInvalid));
        assert_eq!(Cursor::parse("x", "chat"), Err(TokenInvalid));
        assert_eq!(Cursor::parse(&"0".repeat(86), "chat"), Err(TokenInvalid));
    }
}
