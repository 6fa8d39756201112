//! What a run came to.

use std::fmt;

/// Counts of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Questions about living peers.
    pub(crate) asked: u64,
    /// Answered from the member's own table.
    pub(crate) at_hand: u64,
    /// Answered by an owner, at one hop.
    pub(crate) one_hop: u64,
    /// Not found, or not in time, though the peer lives.
    pub(crate) missed: u64,
    /// Found with an older record than the peer had told two seconds before.
    pub(crate) stale: u64,
    /// Questions to owners.
    pub(crate) hops: u64,
    /// How long answers took, in milliseconds.
    pub(crate) waits: Vec<u32>,
    /// Questions about peers that never were, and how many were answered with "unknown".
    pub(crate) strangers: (u64, u64),
    /// Records that arrived, and how many of them were news.
    pub(crate) records: (u64, u64),
    /// How long changes of presence took to who watched, in milliseconds.
    pub(crate) presence: Vec<u32>,
    /// Links that opened.
    pub(crate) links: u64,
    /// Times that a member saw another ring.
    pub(crate) changes: u64,
    /// Messages.
    pub(crate) messages: u64,
    /// The longest time that a living peer was with no owner, in milliseconds.
    pub(crate) absent: u64,
}

impl Report {
    /// The part of the questions about living peers that were answered within one hop.
    pub(crate) fn found(&self) -> f64 {
        1.0 - self.missed as f64 / self.asked.max(1) as f64
    }
}

/// The value below which the given thousandths of all lie.
pub(crate) fn quantile(values: &[u32], thousandths: usize) -> u32 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get((values.len() * thousandths / 1000).min(values.len().saturating_sub(1))).copied().unwrap_or(0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (quantile(&self.waits, 500), quantile(&self.waits, 990));
        let hops = self.hops as f64 / (self.one_hop + self.missed).max(1) as f64;
        write!(
            f,
            "{} locates: {:.4} % within one hop ({} at hand), {} stale, {hops:.2} owners asked, {p50} ms, p99 {p99} ms; \
             {} of {} strangers unknown; {} records told, {} of them news; presence p99 {} ms; {} links, {} changes of rings, \
             {} messages; absent {} ms at most",
            self.asked,
            self.found() * 100.0,
            self.at_hand,
            self.stale,
            self.strangers.1,
            self.strangers.0,
            self.records.0,
            self.records.1,
            quantile(&self.presence, 990),
            self.links,
            self.changes,
            self.messages,
            self.absent,
        )
    }
}
