//! Who takes part: ids of peers and members, and what owns them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use p2psb_proto::model::{PeerId, PublicKey, SecretKey};
use p2psb_rendezvous_svc::core::placement::Key;

/// An id that costs nothing: nobody signs with it.
pub(crate) fn cheap(kind: u8, n: u64) -> PeerId {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    PeerId::new(PublicKey::from_bytes(bytes))
}

/// The key of peer `n`, where peers sign.
pub(crate) fn secret(n: u32) -> SecretKey {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_seed(&seed)
}

/// What belongs to an id. Nobody chooses ids here to do harm, and they are looked up more often than anything else.
pub(crate) type ById<T> = HashMap<PeerId, T, BuildHasherDefault<Quick>>;

/// A hash of few steps.
#[derive(Default)]
pub(crate) struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for some in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..some.len()].copy_from_slice(some);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        // The table uses the highest bits and the lowest, which differ least.
        self.0 ^ self.0 >> 32
    }
}

/// Peers by number.
pub(crate) struct Ids {
    all: Vec<(PeerId, Key)>,
    numbers: ById<u32>,
}

impl Ids {
    /// `n` peers; those that sign have real keys.
    pub(crate) fn new(n: u32, sign: bool) -> Self {
        let id = |n| if sign { PeerId::new(secret(n).public()) } else { cheap(1, u64::from(n)) };
        let all: Vec<_> = (0..n).map(id).map(|id| (id, Key::peer(&id))).collect();
        let numbers = all.iter().zip(0..).map(|((id, _), n)| (*id, n)).collect();
        Self { all, numbers }
    }

    pub(crate) fn id(&self, n: u32) -> PeerId {
        self.all[n as usize].0
    }

    pub(crate) fn key(&self, n: u32) -> Key {
        self.all[n as usize].1
    }

    pub(crate) fn number(&self, id: &PeerId) -> u32 {
        self.numbers[id]
    }
}
