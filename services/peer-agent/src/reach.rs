//! Trying several addresses of one end: each gets a head start before the next is tried beside it (RFC 8305).

use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

/// The head start of one address before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses tried at once.
const MAX_AT_ONCE: usize = 4;

/// The first success, in the order given; or what was wrong with each.
pub async fn first<C, T, E, F>(candidates: Vec<C>, attempt: impl Fn(C) -> F) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = candidates.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut problems = Vec::new();
    loop {
        if trying.len() < MAX_AT_ONCE
            && let Some(candidate) = waiting.next()
        {
            trying.push(attempt(candidate));
        }
        if trying.is_empty() {
            return Err(problems);
        }
        let more = waiting.len() > 0 && trying.len() < MAX_AT_ONCE;
        tokio::select! {
            Some(outcome) = trying.next() => match outcome {
                Ok(success) => return Ok(success),
                Err(problem) => problems.push(problem),
            },
            () = tokio::time::sleep(HEAD_START), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_the_next() {
        let attempt = |n: u32| async move {
            match n {
                0 => std::future::pending().await,
                1 => Err("refused"),
                n => Ok(n),
            }
        };
        assert_eq!(first(vec![0, 1, 7], attempt).await, Ok(7));
        assert_eq!(first(vec![1, 1], attempt).await, Err(vec!["refused"; 2]));
        assert_eq!(first(Vec::new(), attempt).await, Err(Vec::new()));
    }

    #[tokio::test]
    async fn four_are_tried_at_once_and_no_more() {
        let begun = std::cell::Cell::new(0);
        let attempt = |_: u32| {
            begun.set(begun.get() + 1);
            std::future::pending::<Result<(), ()>>()
        };
        let trying = first((0..10).collect(), attempt);
        assert!(tokio::time::timeout(HEAD_START * 6, trying).await.is_err());
        assert_eq!(begun.get(), MAX_AT_ONCE);
    }
}
