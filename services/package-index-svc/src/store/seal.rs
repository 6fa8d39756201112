//! How records lie on disk: the encoded record and 8 bytes of its BLAKE3 digest, so that a flipped bit is noticed when it is
//! read, for a fraction of what checking the signature again would cost.

use bytes::Bytes;
use p2psb_proto::model::Digest;
use p2psb_proto::wire::common::v1::SignedRecord;
use prost::Message;

use super::StoreError;

const TAG_BYTES: usize = 8;

/// As it is to be stored.
#[must_use]
pub fn seal(record: &SignedRecord) -> Vec<u8> {
    let mut bytes = record.encode_to_vec();
    let tag = tag(&bytes);
    bytes.extend_from_slice(&tag);
    bytes
}

/// The record that was stored.
pub fn unseal(sealed: &[u8]) -> Result<SignedRecord, StoreError> {
    let damaged = || StoreError::Damaged("a record does not have the checksum it was stored with".into());
    let (bytes, stored) = sealed.split_last_chunk::<TAG_BYTES>().ok_or_else(damaged)?;
    if tag(bytes) != *stored {
        return Err(damaged());
    }
    SignedRecord::decode(Bytes::copy_from_slice(bytes)).map_err(|_| damaged())
}

fn tag(bytes: &[u8]) -> [u8; TAG_BYTES] {
    let digest = Digest::of(bytes);
    digest.as_bytes().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_record_comes_back_and_a_flipped_bit_is_noticed() {
        let record =
            SignedRecord { format: 1, payload: Bytes::from_static(b"payload"), ..SignedRecord::default() };
        let sealed = seal(&record);
        assert_eq!(unseal(&sealed), Ok(record));
        for at in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[at] ^= 1;
            assert!(matches!(unseal(&broken), Err(StoreError::Damaged(_))), "at {at}");
        }
        assert!(unseal(&[]).is_err());
    }
}
