//! `AgentService`: what the user asks of the daemon. Decode, call, encode.

pub mod overview;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use p2psb_client::locator::Locator;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{PeerId, limits};
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_proto::wire::agent::v1::agent_service_server::AgentService;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::content::publish::PublishProgress;
use crate::core::hosts::dial_order;
use crate::fetch::{Fetches, Watched};
use crate::index::Indexes;
use crate::publish::{Order, Publisher};
use overview::Seen;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// The service.
#[derive(Clone)]
pub struct Agent {
    /// What is shown of the agent.
    pub seen: Arc<Seen>,
    /// Publishes.
    pub publisher: Publisher,
    /// Fetches.
    pub fetches: Fetches,
    /// Searches.
    pub indexes: Indexes,
    /// Locates.
    pub locator: Locator,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Agent {
    type PublishStream = Answers<wire::PublishResponse>;
    type FetchStream = Answers<wire::FetchResponse>;

    async fn get_status(
        &self,
        _: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        let status = self.seen.status(&self.fetches, &self.indexes).await.map_err(Failure::into_status)?;
        Ok(Response::new(status))
    }

    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let order = Order::try_from(request.into_inner()).map_err(Failure::into_status)?;
        let publisher = self.publisher.clone();
        let (told, progress) = watch::channel(PublishProgress::default());
        let work = async move { publisher.publish(order, &told).await };
        let event = |event| wire::PublishResponse { event: Some(event) };
        let stream = narrate(
            progress,
            work,
            move |now| event(wire::publish_response::Event::Progress(publish_progress(now))),
            move |result| event(wire::publish_response::Event::Result(result)),
        );
        Ok(Response::new(Box::pin(stream)))
    }

    async fn search_packages(
        &self,
        request: Request<wire::SearchPackagesRequest>,
    ) -> Result<Response<wire::SearchPackagesResponse>, Status> {
        let wire::SearchPackagesRequest { query, page_size } = request.into_inner();
        let packages = self.indexes.search(&query, page_size).await.map_err(Failure::into_status)?;
        Ok(Response::new(wire::SearchPackagesResponse { packages: within_one_message(packages) }))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let fetches = self.fetches.clone();
        let resolving = wire::FetchProgress {
            reference: request.reference.clone(),
            target: request.target.clone(),
            state: wire::FetchState::Resolving.into(),
            ..wire::FetchProgress::default()
        };
        let (told, progress) = watch::channel(resolving);
        let work = async move { follow(fetches.fetch(request).await?, told).await };
        let event = |event| wire::FetchResponse { event: Some(event) };
        let stream = narrate(
            progress,
            work,
            move |now| event(wire::fetch_response::Event::Progress(now)),
            move |result| event(wire::fetch_response::Event::Result(result)),
        );
        Ok(Response::new(Box::pin(stream)))
    }

    async fn cancel_fetch(
        &self,
        request: Request<wire::CancelFetchRequest>,
    ) -> Result<Response<wire::CancelFetchResponse>, Status> {
        self.fetches.cancel(&request.into_inner().target).await.map_err(Failure::into_status)?;
        Ok(Response::new(wire::CancelFetchResponse {}))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        let asked = request.into_inner().peer;
        let peer: PeerId = asked
            .parse()
            .map_err(|error| Failure::new(Reason::InvalidArgument, format!("{error}")).into_status())?;
        let located = self.locator.locate(&peer).await;
        let located = located.map_err(|error| Failure::from(error).into_status())?;
        let addresses = self.locator.believed(&located.peer.record);
        Ok(Response::new(wire::LocateResponse {
            addresses: dial_order(&addresses).iter().map(ToString::to_string).collect(),
            answered_by: located.answered_by.to_string(),
            peer: Some(located.peer.to_wire()),
        }))
    }
}

/// Follows a fetch that may be an older one.
async fn follow(
    watched: Watched,
    told: watch::Sender<wire::FetchProgress>,
) -> Result<wire::FetchResult, Failure> {
    let Watched { mut progress, mut outcome } = watched;
    loop {
        told.send_replace(progress.borrow_and_update().clone());
        if let Some(ended) = outcome.borrow_and_update().clone() {
            return ended;
        }
        tokio::select! {
            // The job lets go of its progress a moment before it says how it ended.
            changed = progress.changed() => if changed.is_err() {
                let gone = || Failure::new(Reason::Internal, "the fetch ended without a word");
                outcome.wait_for(Option::is_some).await.map_err(|_| gone())?;
            },
            _ = outcome.changed() => {}
        }
    }
}

/// Runs `work` and tells of its progress now and then, and of its result last. Whoever stops listening drops the work.
fn narrate<P, R, T>(
    mut progress: watch::Receiver<P>,
    work: impl Future<Output = Result<R, Failure>> + Send + 'static,
    tell: impl Fn(P) -> T + Send + 'static,
    end: impl FnOnce(R) -> T + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static
where
    P: Clone + Send + Sync + 'static,
    R: Send + 'static,
    T: Send + 'static,
{
    let (out, events) = mpsc::channel(4);
    tokio::spawn(async move {
        tokio::pin!(work);
        let mut due = tokio::time::interval(TELL_EVERY);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        progress.mark_changed();
        let ended = loop {
            tokio::select! {
                ended = &mut work => break ended,
                _ = due.tick() => {
                    if progress.has_changed().unwrap_or(false) {
                        let now = progress.borrow_and_update().clone();
                        // A caller that reads slowly misses some progress, and nothing else.
                        let _ = out.try_send(Ok(tell(now)));
                    }
                }
                () = out.closed() => return,
            }
        };
        if progress.has_changed().unwrap_or(true) {
            let last = progress.borrow().clone();
            let _ = out.send(Ok(tell(last))).await;
        }
        let _ = out.send(ended.map(end).map_err(Failure::into_status)).await;
    });
    ReceiverStream::new(events)
}

fn publish_progress(now: PublishProgress) -> wire::PublishProgress {
    wire::PublishProgress { files: now.files, bytes_done: now.bytes_done, bytes_total: now.bytes }
}

/// As many packages as fit one message: descriptions may be long.
fn within_one_message<T: prost::Message>(list: Vec<T>) -> Vec<T> {
    let mut bytes = 0;
    list.into_iter()
        .take_while(|item| {
            bytes += item.encoded_len() + 8;
            bytes <= limits::PAGE_BYTES
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_story_ends_with_its_result_and_tells_the_last_progress_before() {
        let (told, progress) = watch::channel(0);
        let work = async move {
            told.send_replace(7);
            Ok("done")
        };
        let told: Vec<_> = narrate(progress, work, |n| n.to_string(), str::to_owned).collect().await;
        let told: Vec<String> = told.into_iter().map(Result::unwrap).collect();
        assert_eq!(told, ["7", "done"]);
    }

    #[tokio::test]
    async fn whoever_stops_listening_drops_the_work() {
        struct Dropped(Option<tokio::sync::oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.take().map(|tell| tell.send(()));
            }
        }
        let (tell, dropped) = tokio::sync::oneshot::channel();
        let (_told, progress) = watch::channel(0);
        let work = async move {
            let _guard = Dropped(Some(tell));
            std::future::pending::<Result<(), Failure>>().await
        };
        let mut story = Box::pin(narrate(progress, work, |n: i32| n, |()| -1));
        assert_eq!(story.next().await.unwrap().unwrap(), 0);
        drop(story);
        dropped.await.unwrap();
    }
}
