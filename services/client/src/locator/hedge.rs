//! Asking one after the other, each with a head start of its own: who is slow, dead or ignorant holds nobody up.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::endpoint::Endpoint;
use crate::walk::lane::Choice;

/// How many rendezvous of a backbone must have nothing before that is believed: one may be cut off, or lie.
const UNKNOWN_BY: usize = 2;

/// What one rendezvous says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word<T> {
    /// It has what was asked for.
    Found(T),
    /// It has not.
    Unknown,
}

/// What a backbone says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<T> {
    /// It has what was asked for.
    Found(T),
    /// Those of its rendezvous that answered have not.
    Unknown,
    /// Nobody answered.
    None,
}

/// Asks the members in order, each beside the ones before after its head start, a failure or a "not known", until one has the
/// answer or enough have not.
pub(super) async fn hedged<T, F>(
    members: Vec<Choice>,
    ask: impl Fn(Endpoint) -> F,
) -> (Answer<T>, Vec<String>)
where
    F: Future<Output = Result<Word<T>, String>>,
{
    let mut members = members.into_iter();
    let mut running = FuturesUnordered::new();
    let (mut unknown, mut failures) = (0, Vec::new());
    let Some(first) = members.next() else { return (Answer::None, failures) };
    let mut patience = first.patience;
    running.push(ask(first.endpoint));
    while !running.is_empty() && unknown < UNKNOWN_BY {
        tokio::select! {
            biased;
            Some(word) = running.next() => match word {
                Ok(Word::Found(found)) => return (Answer::Found(found), failures),
                Ok(Word::Unknown) => unknown += 1,
                Err(failure) => failures.push(failure),
            },
            () = tokio::time::sleep(patience), if members.len() > 0 => {}
        }
        if let Some(next) = members.next() {
            patience = next.patience;
            running.push(ask(next.endpoint));
        }
    }
    (if unknown > 0 { Answer::Unknown } else { Answer::None }, failures)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn members(ports: std::ops::RangeInclusive<u16>) -> Vec<Choice> {
        let endpoint = |port| format!("http://127.0.0.1:{port}").parse().unwrap();
        ports.map(|port| Choice { endpoint: endpoint(port), patience: PATIENCE, doubtful: false }).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_rendezvous_is_hedged() {
        let ask = |e: Endpoint| async move {
            if e.port() < 3 {
                std::future::pending::<()>().await;
            }
            Ok(Word::Found(e.port()))
        };
        let start = Instant::now();
        let (answer, failures) = hedged(members(1..=3), ask).await;
        assert_eq!((answer, failures.len(), start.elapsed()), (Answer::Found(3), 0, PATIENCE * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_rendezvous_is_followed_at_once_by_the_next() {
        let ask =
            |e: Endpoint| async move { if e.port() < 3 { Err(e.url()) } else { Ok(Word::Found(e.port())) } };
        let start = Instant::now();
        let (answer, failures) = hedged(members(1..=3), ask).await;
        assert_eq!((answer, failures.len(), start.elapsed()), (Answer::Found(3), 2, Duration::ZERO));
    }

    #[tokio::test]
    async fn one_that_does_not_know_is_not_the_last_word() {
        let knows = |port: u16| {
            move |e: Endpoint| async move { Ok(if e.port() == port { Word::Found(port) } else { Word::Unknown }) }
        };
        assert_eq!(hedged(members(1..=3), knows(2)).await.0, Answer::Found(2));
        assert_eq!(hedged(members(1..=3), knows(9)).await.0, Answer::Unknown);
        assert_eq!(hedged(members(1..=1), knows(9)).await.0, Answer::Unknown);
    }

    #[tokio::test]
    async fn nobody_to_ask_is_an_answer() {
        let ask = |e: Endpoint| async move { Ok(Word::Found(e.port())) };
        let (answer, failures) = hedged::<u16, _>(Vec::new(), ask).await;
        assert!(answer == Answer::None && failures.is_empty());
    }
}
