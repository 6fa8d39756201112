//! The question whether another member reaches a peer, and the answer, over the link with it.

use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::model::PeerId;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use tracing::Instrument as _;

use super::frame::Frame;
use super::mailbox::Mailbox;
use crate::confirm;
use crate::node::Node;

/// How long an answer may take: the other member dials meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks a member; `None` if there is no answer: its link ended, or it is slow, or older than the question.
pub(crate) async fn ask(node: &Node, member: &PeerId, question: wire::ConfirmQuestion) -> Option<Answer> {
    let answer = node.hub.ask(member, Question::Confirm(question))?;
    tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()?.answer
}

/// Answers a member that asks: at once if it may not, else when the peer was dialed. A question that makes no sense is answered
/// without an arm.
pub(super) fn answer(
    node: &Arc<Node>,
    mailbox: &Arc<Mailbox>,
    number: u64,
    question: &wire::ConfirmQuestion,
) {
    let Some(dial) = confirm::Dial::read(question) else {
        return mailbox.say(Frame::Answer(wire::BridgeAnswer { number, answer: None }));
    };
    let mailbox = Arc::clone(mailbox);
    let say = move |result| {
        let answer = Some(confirm::answer(result));
        mailbox.say(Frame::Answer(wire::BridgeAnswer { number, answer }));
    };
    match confirm::dial_back(node, dial) {
        Ok(dialed) => drop(tokio::spawn(async move { say(dialed.await) }.in_current_span())),
        Err(failure) => say(Err(failure)),
    }
}
