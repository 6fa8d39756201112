//! Whom a member tells what it learns. Today every member holds everything: a change goes to all linked members but the one it
//! came from, and stops where it is known, so that it also passes around a link that is cut. This is the only place that
//! decides it: k owners of n will be chosen here.

use p2psb_proto::model::PeerId;

/// Of the `linked` members those who are to hear of a change of `peer` that came from `origin`, or from here if that is `None`.
pub fn push_to<'a>(
    peer: &PeerId,
    origin: Option<&PeerId>,
    linked: impl Iterator<Item = &'a PeerId>,
) -> impl Iterator<Item = &'a PeerId> {
    // Nobody has to be told of itself: a member's record comes from that member.
    linked.filter(move |member| Some(*member) != origin && *member != peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn a_change_goes_to_everybody_but_its_origin_and_subject() {
        let linked = [peer(1), peer(2), peer(3)];
        let told = |subject, origin: Option<PeerId>| -> Vec<PeerId> {
            push_to(&peer(subject), origin.as_ref(), linked.iter()).copied().collect()
        };
        assert_eq!(told(9, None), linked);
        assert_eq!(told(9, Some(peer(2))), [peer(1), peer(3)]);
        assert_eq!(told(3, Some(peer(2))), [peer(1)]);
    }
}
