//! One link's way out besides the batches: what wakes and cuts it, what it is to say at once, and which questions wait for answers.
//!
//! Promise: whoever asks gets an answer, or hears that there will be none when the link ends.

use std::collections::HashMap;

use p2psb_proto::wire::rendezvous::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::frame::Frame;

/// Questions and answers that may wait to be sent.
const QUEUE: usize = 1024;
/// Questions that may wait for an answer of one member.
const QUESTIONS: usize = 4096;

/// Something to say.
#[derive(Debug)]
pub(super) struct Saying {
    pub(super) frame: Frame,
    /// Given back when it was said.
    pub(super) held: Option<OwnedSemaphorePermit>,
}

/// What a link is to say at once.
pub(super) type Says = mpsc::Receiver<Saying>;

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<wire::BridgeAnswer>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mailbox {
    filled: Notify,
    cut: CancellationToken,
    says: mpsc::Sender<Saying>,
    waiting: Mutex<Waiting>,
}

impl Mailbox {
    pub(super) fn new() -> (Self, Says) {
        let (says, queued) = mpsc::channel(QUEUE);
        let (filled, cut) = (Notify::new(), CancellationToken::new());
        (Self { filled, cut, says, waiting: Mutex::default() }, queued)
    }

    /// There is something to tell.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Another link took this one's place.
    pub(super) fn replace(&self) {
        self.cut.cancel();
    }

    /// Resolves when another link took this one's place.
    pub(super) async fn replaced(&self) {
        self.cut.cancelled().await;
    }

    /// Says something before what waits in batches. A member that does not read what it asked for is not answered.
    pub(super) fn say(&self, frame: Frame) {
        self.say_and_give_back(frame, None);
    }

    /// The same; when it was said, `held` is given back.
    pub(super) fn say_and_give_back(&self, frame: Frame, held: Option<OwnedSemaphorePermit>) {
        if self.says.try_send(Saying { frame, held }).is_err() {
            metrics::counter!("rendezvous_bridge_unsaid_total").increment(1);
        }
    }

    /// Asks the member; `None` if too many questions wait for it. The answer fails when the link ends.
    pub(super) fn ask(
        &self,
        question: wire::bridge_question::Question,
    ) -> Option<oneshot::Receiver<wire::BridgeAnswer>> {
        let (sender, receiver) = oneshot::channel();
        let number = {
            let mut waiting = self.waiting.lock();
            if waiting.answers.len() >= QUESTIONS {
                // Who asked may have stopped waiting.
                waiting.answers.retain(|_, answer| !answer.is_closed());
            }
            if waiting.answers.len() >= QUESTIONS {
                return None;
            }
            waiting.next += 1;
            let number = waiting.next;
            waiting.answers.insert(number, sender);
            number
        };
        let question = wire::BridgeQuestion { number, question: Some(question) };
        let saying = Saying { frame: Frame::Question(question), held: None };
        if self.says.try_send(saying).is_err() {
            self.waiting.lock().answers.remove(&number);
            return None;
        }
        Some(receiver)
    }

    /// An answer came. One to no question, or too late, is passed over.
    pub(super) fn answered(&self, answer: wire::BridgeAnswer) {
        let waiting = self.waiting.lock().answers.remove(&answer.number);
        if let Some(waiting) = waiting {
            // Nobody waits any more if this fails.
            let _ = waiting.send(answer);
        }
    }

    /// The link ended: nobody will answer.
    pub(super) fn end(&self) {
        self.waiting.lock().answers.clear();
    }
}
