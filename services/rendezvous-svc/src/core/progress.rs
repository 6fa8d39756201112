//! Up to when what a watch has told is all that happened.
//!
//! A watch rests on the word of others: of the owners of its peers that have heard all that they own, of the homes that these
//! peers have sessions with, and, where this server is an owner itself, of all members, any of which may become such a home. It
//! knows of each up to the last mark that came from there. The least of these is the promise; what rests on nobody's word has
//! none.

use std::time::Instant;

use p2psb_proto::model::PeerId;

use super::Now;
use super::bridge::Bridge;
use super::directory::Directory;
use super::presence::MARK_INTERVAL;

/// Up to when all that happened to these watched peers is known here; `None` if of one of them no owner has said anything yet.
#[must_use]
pub fn known_up_to<C: Clone + Ord>(
    directory: &Directory,
    bridge: &Bridge<C>,
    peers: &[PeerId],
    now: Now,
) -> Option<Instant> {
    let (own, mut least, mut is_owner) = (bridge.own(), now.mono, false);
    for peer in peers {
        if directory.is_here(peer, now) {
            continue;
        }
        let mut said = false;
        for owner in bridge.interest().told_by(peer).filter(|owner| bridge.has_finished(owner)) {
            said = true;
            if owner == own {
                is_owner = true;
            } else {
                least = least.min(heard(directory, bridge, &owner, now)?);
            }
        }
        if !said {
            return None;
        }
        for home in directory.presence.homes_of(peer, now.mono) {
            least = least.min(heard(directory, bridge, &home, now)?);
        }
    }
    if is_owner {
        for member in bridge.view().current().members().filter(|member| *member != own) {
            least = least.min(heard(directory, bridge, &member, now)?);
        }
    }
    Some(least)
}

/// Up to when it is known what a home says: from its own marks, from those of members that hear it, or from the moment of its death.
fn heard<C: Clone + Ord>(
    directory: &Directory,
    bridge: &Bridge<C>,
    home: &PeerId,
    now: Now,
) -> Option<Instant> {
    let marked = |home: &PeerId| directory.presence.marked(home);
    let through = || {
        let members = bridge.view().current().members().filter(|member| bridge.hears(member, home));
        members.filter_map(|member| marked(&member)?.checked_sub(MARK_INTERVAL)).max()
    };
    let died = || now.mono.checked_sub(bridge.dead_for(home, now.mono)?);
    marked(home).or_else(through).or_else(died)
}
