//! Pages: how many results, where a page ends, and the opaque token by which the next one is asked for.
//!
//! Invariants: a page holds at least one result if there is any, never more than was allowed, and ends before
//! [`PAGE_BYTES`]; a token is taken only by the query that it was given for. A token names a position, not a right: whoever
//! makes one up sees nothing that a first page would not lead to.

use p2psb_proto::model::limits::PAGE_BYTES;
use p2psb_proto::model::{PackageName, PublisherId};

use super::limits::{PAGE_TOKEN_BYTES, PageSizes};

/// Results of one query, up to the bounds of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The results.
    pub items: Vec<T>,
    /// More follow.
    pub more: bool,
}

impl<T> Page<T> {
    /// The same page of other things.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(f).collect(), more: self.more }
    }
}

/// How many results a page may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(usize);

impl PageSize {
    /// From what a caller asks for: 0 means the default, too many means the most.
    #[must_use]
    pub fn new(asked: u32, (default, most): PageSizes) -> Self {
        let size = if asked == 0 { default } else { asked.min(most) };
        Self(size.max(1) as usize)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

/// Fills a page, result by result.
#[derive(Debug)]
pub struct Filling<T> {
    page: Page<T>,
    size: PageSize,
    bytes: usize,
}

impl<T> Filling<T> {
    /// An empty page.
    #[must_use]
    pub const fn new(size: PageSize) -> Self {
        Self { page: Page { items: Vec::new(), more: false }, size, bytes: 0 }
    }

    /// Whether a further result of so many bytes has room. If not, the page ends here, and more follows.
    pub fn has_room(&mut self, bytes: usize) -> bool {
        let first = self.page.items.is_empty();
        let room = self.page.items.len() < self.size.0 && (first || self.bytes + bytes <= PAGE_BYTES);
        self.page.more |= !room;
        room && !self.page.more
    }

    /// Puts a result in that takes so many bytes; false if the page has ended.
    pub fn push(&mut self, item: T, bytes: usize) -> bool {
        if !self.has_room(bytes) {
            return false;
        }
        self.bytes += bytes;
        self.page.items.push(item);
        true
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> Page<T> {
        self.page
    }
}

/// A token that belongs to no query, or to another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the page token is not one of this query; pass it unchanged with the same query, or begin without one"
)]
pub struct PageTokenError;

/// Where in the results of its query a page begins.
pub trait Cursor: Sized {
    /// Its bytes.
    fn to_bytes(&self) -> Vec<u8>;
    /// The cursor of these bytes, if they are one.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

/// What a token belongs to: a method and its arguments, without page size and token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryKey([u8; 8]);

impl QueryKey {
    /// The key of a query. Arguments are kept apart by their lengths.
    #[must_use]
    pub fn new(method: &str, arguments: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in std::iter::once(&method.as_bytes()).chain(arguments) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let mut key = [0; 8];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }

    /// The token of the page that begins after `cursor`.
    #[must_use]
    pub fn token(self, cursor: &impl Cursor) -> String {
        let mut bytes = self.0.to_vec();
        bytes.extend(cursor.to_bytes());
        hex::encode(bytes)
    }

    /// The cursor in a token; none if it is empty.
    pub fn cursor<C: Cursor>(self, token: &str) -> Result<Option<C>, PageTokenError> {
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > PAGE_TOKEN_BYTES {
            return Err(PageTokenError);
        }
        let bytes = hex::decode(token).map_err(|_| PageTokenError)?;
        let cursor = bytes.strip_prefix(&self.0).ok_or(PageTokenError)?;
        C::from_bytes(cursor).map(Some).ok_or(PageTokenError)
    }
}

/// In a chain: entries before this `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeforeSeq(pub u64);

impl Cursor for BeforeSeq {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|seq| Self(u64::from_be_bytes(seq)))
    }
}

/// Among packages by name, then publisher: those after this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfterPackage {
    /// Name of the last package shown.
    pub name: PackageName,
    /// Its publisher.
    pub publisher: PublisherId,
}

impl Cursor for AfterPackage {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.publisher.to_bytes().to_vec();
        bytes.extend_from_slice(self.name.as_str().as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (publisher, name) = bytes.split_at_checked(33)?;
        let publisher = PublisherId::from_slice(publisher).ok()?;
        Some(Self { name: std::str::from_utf8(name).ok()?.parse().ok()?, publisher })
    }
}

/// Among search results. Exact names come first, by publisher; then all others, by relevance.
#[derive(Clone, Debug, PartialEq)]
pub enum AfterHit {
    /// After the exact name of this publisher.
    Exact(PublisherId),
    /// After the package with this rank (lower is better) and, among equals, this number.
    Ranked {
        /// Its rank.
        rank: f64,
        /// Its number.
        row: i64,
    },
}

impl Cursor for AfterHit {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Exact(publisher) => publisher.to_bytes().to_vec(),
            Self::Ranked { rank, row } => [rank.to_be_bytes(), row.to_be_bytes()].concat(),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if let Ok(publisher) = PublisherId::from_slice(bytes) {
            return Some(Self::Exact(publisher));
        }
        let (rank, row) = bytes.split_first_chunk()?;
        let rank = f64::from_be_bytes(*rank);
        let row = i64::from_be_bytes(row.try_into().ok()?);
        rank.is_finite().then_some(Self::Ranked { rank, row })
    }
}

/// Among the hosts of a manifest, heard of last first: those after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfterHost {
    /// When the last host shown was heard of, in Unix milliseconds.
    pub seen: i64,
    /// Its number.
    pub row: i64,
}

impl Cursor for AfterHost {
    fn to_bytes(&self) -> Vec<u8> {
        [self.seen.to_be_bytes(), self.row.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (seen, row) = bytes.split_first_chunk()?;
        Some(Self { seen: i64::from_be_bytes(*seen), row: i64::from_be_bytes(row.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::SecretKey;
    use proptest::prelude::*;

    use super::*;

    fn publisher(seed: u8) -> PublisherId {
        PublisherId::new(SecretKey::from_seed(&[seed; 32]).public())
    }

    #[test]
    fn page_sizes_have_a_default_and_an_end() {
        for (asked, size) in [(0, 100), (1, 1), (1000, 1000), (u32::MAX, 1000)] {
            assert_eq!(PageSize::new(asked, (100, 1000)).get(), size);
        }
    }

    #[test]
    fn a_token_belongs_to_its_query_alone() {
        let key = QueryKey::new("ListReleases", &[b"ab", b"c"]);
        let token = key.token(&BeforeSeq(7));
        assert_eq!(key.cursor(&token), Ok(Some(BeforeSeq(7))));
        assert_eq!(key.cursor::<BeforeSeq>(""), Ok(None));
        let other = QueryKey::new("ListReleases", &[b"a", b"bc"]);
        assert_eq!(other.cursor::<BeforeSeq>(&token), Err(PageTokenError));
        for broken in ["zz", "00", &token[2..], &format!("{token}00"), &"ab".repeat(4096)] {
            assert_eq!(key.cursor::<BeforeSeq>(broken), Err(PageTokenError), "{broken}");
        }
    }

    #[test]
    fn cursors_survive_their_bytes() {
        let package = AfterPackage { name: "a.b".parse().unwrap(), publisher: publisher(1) };
        assert_eq!(AfterPackage::from_bytes(&package.to_bytes()), Some(package));
        for hit in [AfterHit::Exact(publisher(2)), AfterHit::Ranked { rank: -1.25, row: 9 }] {
            assert_eq!(AfterHit::from_bytes(&hit.to_bytes()), Some(hit));
        }
        assert_eq!(AfterHit::from_bytes(&[0xff; 16]), None, "no number");
        let host = AfterHost { seen: 5, row: -1 };
        assert_eq!(AfterHost::from_bytes(&host.to_bytes()), Some(host));
    }

    proptest! {
        #[test]
        fn pages_in_a_row_are_the_whole_and_each_keeps_its_bounds(
            sizes in proptest::collection::vec(0..200_000_usize, 0..60),
            most in 1..20_u32,
        ) {
            let size = PageSize::new(most, (100, 1000));
            let mut seen = Vec::new();
            loop {
                let mut filling = Filling::new(size);
                for (index, bytes) in sizes.iter().enumerate().skip(seen.len()) {
                    if !filling.push((index, *bytes), *bytes) {
                        break;
                    }
                }
                let page = filling.finish();
                prop_assert!(page.items.len() <= size.get());
                let bytes: usize = page.items.iter().map(|item| item.1).sum();
                prop_assert!(bytes <= PAGE_BYTES || page.items.len() == 1);
                seen.extend(page.items);
                if !page.more {
                    break;
                }
            }
            prop_assert_eq!(seen, sizes.into_iter().enumerate().collect::<Vec<_>>());
        }

        #[test]
        fn no_token_makes_trouble(token in ".{0,80}") {
            let key = QueryKey::new("m", &[]);
            let _ = key.cursor::<AfterPackage>(&token);
            let _ = key.cursor::<AfterHit>(&token);
        }
    }
}
