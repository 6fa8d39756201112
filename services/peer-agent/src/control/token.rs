//! The token by which the daemon knows its user: 32 random bytes, made anew at each start, never logged.

use std::fmt;

use p2psb_proto::error::{Failure, Reason};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};
use zeroize::Zeroize as _;

const BYTES: usize = 32;
const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// The token, as hexadecimal digits.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Token {
    /// A new one.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; BYTES];
        getrandom::fill(&mut bytes)?;
        let token = Self(hex::encode(bytes));
        bytes.zeroize();
        Ok(token)
    }

    /// The text itself: the caller takes care of where it goes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `shown` is this token. How long it takes says nothing of where they differ.
    #[must_use]
    pub fn matches(&self, shown: &str) -> bool {
        shown.as_bytes().ct_eq(self.0.as_bytes()).into()
    }

    /// The header that shows it.
    #[must_use]
    pub fn header(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Lets only those through who show the token.
#[derive(Clone, Debug)]
pub struct Guard(pub Token);

impl Guard {
    fn admits(&self, metadata: &MetadataMap) -> bool {
        let shown = metadata.get(HEADER).and_then(|value| value.to_str().ok());
        shown.and_then(|value| value.strip_prefix(SCHEME)).is_some_and(|token| self.0.matches(token))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.admits(request.metadata()) {
            return Ok(request);
        }
        let problem =
            "show the token of control.json in the agent's data folder: authorization: Bearer TOKEN";
        Err(Failure::new(Reason::AuthenticationRequired, problem).into_status())
    }
}

/// Shows the token with every call.
#[derive(Clone, Debug)]
pub struct Show(pub Token);

impl Interceptor for Show {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut value: tonic::metadata::AsciiMetadataValue = self
            .0
            .header()
            .parse()
            .map_err(|_| Status::internal("control.json holds a token that is none"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert(HEADER, value);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::error::reason_of;

    use super::*;

    fn call(header: Option<&str>, token: &Token) -> Result<Request<()>, Status> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert(HEADER, header.parse().unwrap());
        }
        Guard(token.clone()).call(request)
    }

    #[test]
    fn only_the_token_opens() {
        let token = Token::generate().unwrap();
        assert!(call(Some(&token.header()), &token).is_ok());
        assert!(Guard(token.clone()).call(Show(token.clone()).call(Request::new(())).unwrap()).is_ok());
        let other = Token::generate().unwrap().header();
        let cut = token.header()[..40].to_owned();
        for header in [None, Some(""), Some("Bearer "), Some(token.expose()), Some(&*other), Some(&*cut)] {
            let status = call(header, &token).unwrap_err();
            assert_eq!(reason_of(&status), Some(Reason::AuthenticationRequired), "{header:?}");
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let token = Token::generate().unwrap();
        assert!(!format!("{token:?} {:?}", Guard(token.clone())).contains(token.expose()));
    }
}
