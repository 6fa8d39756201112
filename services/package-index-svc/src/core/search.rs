//! What a search looks for: plain words, never syntax.
//!
//! A word is an unbroken run of letters and digits; everything else only separates. So no query, whatever it is made of,
//! can mean anything to a search engine but its words.

use super::limits::QUERY_BYTES;

/// A query that can't be searched for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Nothing to look for.
    #[error("the query is empty; give at least one word")]
    Empty,
    /// Too long.
    #[error("the query has {0} bytes, at most {QUERY_BYTES} are allowed")]
    TooLong(usize),
}

/// A query: its words, and the text as a whole, which may be the name of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    words: Vec<String>,
    whole: String,
}

impl Query {
    /// Parses a query.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        if text.is_empty() {
            return Err(QueryError::Empty);
        }
        if text.len() > QUERY_BYTES {
            return Err(QueryError::TooLong(text.len()));
        }
        // Which letters are equal (case, accents) is the search engine's to say: it says the same of what it indexes.
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        words.sort_unstable();
        words.dedup();
        Ok(Self { words, whole: text.trim().to_lowercase() })
    }

    /// The words that must all occur; none if the query holds no letter and no digit, and then nothing is found.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// What an exact name would be.
    #[must_use]
    pub fn whole(&self) -> &str {
        &self.whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn syntax_only_separates_words() {
        for (text, words) in [
            ("proto buffers", &["buffers", "proto"][..]),
            ("\" OR 1=1 --", &["1", "OR"]),
            ("foo*", &["foo"]),
            ("NEAR(a b, 5)", &["5", "NEAR", "a", "b"]),
            ("name:x -y +z ^q", &["name", "q", "x", "y", "z"]),
            ("Äpfel Äpfel", &["Äpfel"]),
            ("***", &[]),
        ] {
            assert_eq!(Query::parse(text).unwrap().words(), words, "{text}");
        }
        assert_eq!(Query::parse(" My-Tool ").unwrap().whole(), "my-tool");
    }

    #[test]
    fn empty_and_endless_queries_are_refused() {
        assert_eq!(Query::parse(""), Err(QueryError::Empty));
        assert_eq!(Query::parse(&"x".repeat(256)), Err(QueryError::TooLong(256)));
    }

    proptest! {
        #[test]
        fn words_hold_nothing_but_letters_and_digits(text in ".{1,60}") {
            let Ok(query) = Query::parse(&text) else { return Ok(()) };
            prop_assert!(query.words().iter().flat_map(|word| word.chars()).all(char::is_alphanumeric));
        }
    }
}
