//! Frames: small chunks packed together, large ones split, so that none carries more than 256 KiB of data.

use bytes::Bytes;
use p2psb_proto::model::limits;
use p2psb_proto::wire::peer::v1 as wire;
pub use p2psb_proto::wire::peer::v1::exchange_frame::Message;

use crate::core::outgoing::Part;

/// Parts of a frame: so many that their own encoding fits beside the data.
const MAX_PARTS: usize = 1024;

/// A frame with this message.
#[must_use]
pub fn frame(message: Message) -> wire::ExchangeFrame {
    wire::ExchangeFrame { message: Some(message) }
}

/// The parts of a frame, as the link's state takes them.
#[must_use]
pub fn parts(batch: wire::ChunkBatch) -> Vec<Part> {
    let part = |part: wire::ChunkPart| {
        let wire::ChunkPart { index, offset, total_size, data } = part;
        Part { index, offset, total_size, data }
    };
    batch.parts.into_iter().map(part).collect()
}

/// Packs the chunks of one request, in its order.
#[derive(Debug)]
pub struct Packer {
    request: u64,
    parts: Vec<wire::ChunkPart>,
    bytes: usize,
    full: Vec<wire::ChunkBatch>,
}

impl Packer {
    /// For the request with this id.
    #[must_use]
    pub const fn new(request: u64) -> Self {
        Self { request, parts: Vec::new(), bytes: 0, full: Vec::new() }
    }

    /// Adds a chunk. A chunk that does not fit is split; the parts share its memory.
    pub fn add(&mut self, index: u32, chunk: &Bytes) {
        let Ok(total_size) = u32::try_from(chunk.len()) else { return };
        let mut offset = 0;
        while offset < chunk.len() {
            if self.bytes >= limits::CHUNK_FRAME_BYTES || self.parts.len() >= MAX_PARTS {
                self.close();
            }
            let room = limits::CHUNK_FRAME_BYTES - self.bytes;
            let end = chunk.len().min(offset + room);
            // Below 4 GiB by the check of the length above.
            let at = offset as u32;
            self.parts.push(wire::ChunkPart {
                index,
                offset: at,
                total_size,
                data: chunk.slice(offset..end),
            });
            self.bytes += end - offset;
            offset = end;
        }
    }

    /// The frames that are full.
    pub fn take_full(&mut self) -> Vec<wire::ChunkBatch> {
        std::mem::take(&mut self.full)
    }

    /// All frames, the last one as full as it is.
    pub fn flush(&mut self) -> Vec<wire::ChunkBatch> {
        if !self.parts.is_empty() {
            self.close();
        }
        self.take_full()
    }

    fn close(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        self.bytes = 0;
        self.full.push(wire::ChunkBatch { request_id: self.request, parts });
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::Digest;
    use prost::Message as _;

    use super::*;
    use crate::core::outgoing::{MAX_CHUNK_BYTES, Outgoing, Want};

    #[test]
    fn what_is_packed_is_put_together_again() {
        let sizes = [1, 100, 262_144, 0, 300_000, 5, 4 << 20, 262_143, 2];
        let mut outgoing = Outgoing::default();
        let chunks: Vec<Bytes> = sizes.iter().map(|size| Bytes::from(vec![7; *size])).collect();
        let want = |chunk: &Bytes| Want { digest: Digest::of(chunk), max_bytes: MAX_CHUNK_BYTES };
        let id = outgoing.open(chunks.iter().map(want).collect()).unwrap();
        let mut packer = Packer::new(id);
        for (index, chunk) in chunks.iter().enumerate() {
            packer.add(index as u32, chunk);
        }
        let mut arrived = Vec::new();
        for batch in packer.flush() {
            let data: usize = batch.parts.iter().map(|part| part.data.len()).sum();
            assert!(data <= limits::CHUNK_FRAME_BYTES && data > 0);
            arrived.extend(outgoing.on_chunks(batch.request_id, parts(batch)).unwrap());
        }
        let sizes: Vec<usize> = arrived.iter().map(|arrived| arrived.data.len()).collect();
        assert_eq!(sizes, [1, 100, 262_144, 300_000, 5, 4 << 20, 262_143, 2]);
    }

    #[test]
    fn frames_of_tiny_chunks_keep_their_bound() {
        let mut packer = Packer::new(u64::MAX);
        for index in 0..5000 {
            packer.add(index, &Bytes::from_static(&[1; 255]));
        }
        for batch in packer.flush() {
            let response = wire::ExchangeResponse { frame: Some(frame(Message::Chunks(batch))) };
            assert!(response.encoded_len() <= limits::EXCHANGE_FRAME_BYTES, "{}", response.encoded_len());
        }
    }
}
