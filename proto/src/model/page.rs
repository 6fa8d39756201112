//! How a long answer is continued: an opaque token that names a place in the answer to one query.
//!
//! Promise: a place comes back unchanged from its token, and only together with the query that it was given for. A token is
//! no right: whoever makes one up sees nothing that a first page would not lead to. So it is checked, not signed, and any
//! server can continue what another one began.

use super::digest::{Digest, framed};
use crate::error::{Failure, Reason};

const DOMAIN: &str = "p2psb/page/1";
/// Bytes that name the query, and bytes of the check.
const TAG_BYTES: usize = 8;

/// What is no token of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageTokenError {
    /// It is none, or was changed.
    #[error("the page token is damaged, or none of this method; pass it on unchanged, or begin without one")]
    Damaged,
    /// It is one of another query.
    #[error("the page token was given for another query; pass it on with the same one, or begin without one")]
    OtherQuery,
}

impl From<PageTokenError> for Failure {
    fn from(error: PageTokenError) -> Self {
        Self::new(Reason::PageTokenInvalid, error.to_string())
    }
}

/// The token of a place in the answer to `query`.
#[must_use]
pub fn token<const N: usize>(query: &Digest, place: &[u8; N]) -> String {
    let query = first(query);
    let check = check(place, &query);
    hex::encode([place.as_slice(), &query, &check].concat())
}

/// The place that a token of `query` names.
pub fn place<const N: usize>(query: &Digest, token: &str) -> Result<[u8; N], PageTokenError> {
    // Looked at before it is decoded: it may be of any length.
    if token.len() != 2 * (N + 2 * TAG_BYTES) {
        return Err(PageTokenError::Damaged);
    }
    let bytes = hex::decode(token).map_err(|_| PageTokenError::Damaged)?;
    let (place, rest) = bytes.split_first_chunk::<N>().ok_or(PageTokenError::Damaged)?;
    let (given_for, sum) = rest.split_first_chunk::<TAG_BYTES>().ok_or(PageTokenError::Damaged)?;
    if check(place, given_for) != *sum {
        return Err(PageTokenError::Damaged);
    }
    if *given_for != first(query) {
        return Err(PageTokenError::OtherQuery);
    }
    Ok(*place)
}

fn check(place: &[u8], query: &[u8; TAG_BYTES]) -> [u8; TAG_BYTES] {
    first(&Digest::of(&framed(DOMAIN, &[place, query])))
}

fn first(digest: &Digest) -> [u8; TAG_BYTES] {
    digest.as_bytes().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_place_and_belongs_to_its_query() {
        let (query, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let given = token(&query, b"here");
        assert_eq!(place(&query, &given), Ok(*b"here"));
        assert_eq!(place::<4>(&other, &given), Err(PageTokenError::OtherQuery));
        assert_eq!(place::<5>(&query, &given), Err(PageTokenError::Damaged), "of another method");
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_damaged() {
        let query = Digest::of(b"one");
        let given = token(&query, b"here");
        for at in 0..given.len() {
            let mut changed = given.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(place::<4>(&query, &changed), Err(PageTokenError::Damaged), "{changed}");
        }
        for none in ["", "x", &given[1..], &format!("{given}0"), &"ä".repeat(20), &"g".repeat(given.len())] {
            assert_eq!(place::<4>(&query, none), Err(PageTokenError::Damaged), "{none}");
        }
    }
}
