//! Content-defined chunks: FastCDC 2020, normalization level 1, seed 0, with parameters fixed by the size of a file.
//!
//! Where a file is cut can never change: two members who publish the same file must get the same chunks. The golden vectors below hold
//! that.

use fastcdc::v2020::{self, Normalization};

const KIB: usize = 1024;
const GIB: u64 = 1 << 30;

/// The parameters of a file's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChunkClass {
    /// 64 KiB on average: files below 16 GiB.
    Small,
    /// 256 KiB on average: files below 256 GiB.
    Medium,
    /// 1 MiB on average: all others.
    Large,
}

impl ChunkClass {
    /// The longest chunk of any class.
    pub const LONGEST: usize = 4 * KIB * KIB;

    /// The class of a new file.
    #[must_use]
    pub const fn of_size(size: u64) -> Self {
        if size < 16 * GIB {
            Self::Small
        } else if size < 256 * GIB {
            Self::Medium
        } else {
            Self::Large
        }
    }

    /// Whether a file of this size may be of this class: a new version keeps its file's class until four times past the limit.
    #[must_use]
    pub const fn allows(self, size: u64) -> bool {
        match self {
            Self::Small => size < 64 * GIB,
            Self::Medium => size >= 4 * GIB && size < 1024 * GIB,
            Self::Large => size >= 64 * GIB,
        }
    }

    /// Base-2 logarithm of the average chunk size.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Small => 16,
            Self::Medium => 18,
            Self::Large => 20,
        }
    }

    /// The class with this logarithm.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            16 => Some(Self::Small),
            18 => Some(Self::Medium),
            20 => Some(Self::Large),
            _ => None,
        }
    }

    /// Bytes of an average chunk.
    #[must_use]
    pub const fn average(self) -> usize {
        1 << self.bits()
    }

    /// Bytes of the shortest chunk, the last one of a file excepted.
    #[must_use]
    pub const fn shortest(self) -> usize {
        self.average() / 4
    }

    /// Bytes of the longest chunk.
    #[must_use]
    pub const fn longest(self) -> usize {
        self.average() * 4
    }
}

/// Finds the cuts of one file.
#[derive(Clone, Copy, Debug)]
pub struct Chunker {
    class: ChunkClass,
    strict: u64,
    loose: u64,
}

impl Chunker {
    /// For files of this class.
    #[must_use]
    pub fn new(class: ChunkClass) -> Self {
        let (strict, loose) = v2020::select_masks(class.average(), Normalization::Level1);
        Self { class, strict, loose }
    }

    /// The length of the first chunk of `window`, which begins at a cut and holds the rest of the file or at least
    /// [`ChunkClass::longest`] bytes of it. Zero only if the window is empty.
    #[must_use]
    pub fn cut(&self, window: &[u8]) -> usize {
        let class = self.class;
        let (_, length) = v2020::cut(
            window,
            class.shortest(),
            class.average(),
            class.longest(),
            self.strict,
            self.loose,
            self.strict << 1,
            self.loose << 1,
        );
        length
    }

    /// The chunks of a whole file in memory.
    pub fn chunks<'a>(&self, mut rest: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let chunker = *self;
        std::iter::from_fn(move || {
            let (chunk, tail) = rest.split_at_checked(chunker.cut(rest))?;
            rest = tail;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;
    use proptest::prelude::*;

    /// The bytes of the golden vectors: xorshift64* (shifts 12, 25, 27; multiplier 0x2545F4914F6CDD1D), each output as 8 bytes little
    /// endian. The seed is the first state.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut out = Vec::with_capacity(length + 8);
        while out.len() < length {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            out.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        out.truncate(length);
        out
    }

    fn lengths(class: ChunkClass, data: &[u8]) -> Vec<usize> {
        Chunker::new(class).chunks(data).map(<[u8]>::len).collect()
    }

    fn digest_of_cuts(class: ChunkClass, data: &[u8]) -> String {
        let mut list = Vec::new();
        for chunk in Chunker::new(class).chunks(data) {
            list.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
            list.extend_from_slice(Digest::of(chunk).as_bytes());
        }
        Digest::of(&list).to_string()
    }

    #[test]
    fn golden_cuts_never_move() {
        let data = noise(1, 1 << 20);
        let text = Digest::of(&data).to_string();
        assert_eq!(text, "474e24daa2f851c011be7dfb5565000b45e5f934baf998ac59828e0ad2c2cf68", "the generator");
        let small = [
            107_883, 65_467, 49_201, 96_571, 43_828, 44_060, 84_095, 71_209, 57_833, 67_767, 78_336, 83_778,
            70_347, 128_201,
        ];
        assert_eq!(lengths(ChunkClass::Small, &data), small);
        let data = noise(2, 8 << 20);
        let large = [1_316_134, 1_759_528, 505_303, 1_363_131, 1_092_261, 2_352_251];
        assert_eq!(lengths(ChunkClass::Large, &data), large);
    }

    #[test]
    fn golden_chunk_lists_never_change() {
        for (class, seed, length, digest) in [
            (
                ChunkClass::Small,
                1,
                1 << 20,
                "4d86442b480877da98bfcaa0857dfd66a1517cdc230a095b8a47d0b7276e7aaa",
            ),
            (
                ChunkClass::Medium,
                2,
                8 << 20,
                "144277c99d699e98fc22c8f00ef0270015a87d5d24017e6dc14f8821756917ec",
            ),
            (
                ChunkClass::Large,
                2,
                8 << 20,
                "66d7377eb5cf416eebd9c53703260088f2836812e9ce149e74e7b6fc2f53ae39",
            ),
        ] {
            assert_eq!(digest_of_cuts(class, &noise(seed, length)), digest, "{class:?}");
        }
    }

    #[test]
    fn the_class_follows_the_size_and_is_kept_for_a_while() {
        let sizes = [(0, 16), (16 * GIB - 1, 16), (16 * GIB, 18), (256 * GIB - 1, 18), (256 * GIB, 20)];
        for (size, bits) in sizes {
            let class = ChunkClass::of_size(size);
            assert_eq!(class.bits(), bits);
            assert_eq!(ChunkClass::from_bits(bits), Some(class));
            assert!(class.allows(size));
        }
        assert!(ChunkClass::Small.allows(63 * GIB) && !ChunkClass::Small.allows(64 * GIB));
        assert!(ChunkClass::Medium.allows(4 * GIB) && !ChunkClass::Medium.allows(GIB));
        assert_eq!(ChunkClass::from_bits(17), None);
        assert_eq!(ChunkClass::Large.longest(), ChunkClass::LONGEST);
    }

    #[test]
    fn data_without_structure_is_cut_at_the_longest() {
        let longest = ChunkClass::Small.longest();
        assert_eq!(lengths(ChunkClass::Small, &vec![0; 2 * longest + 5]), [longest, longest, 5]);
        assert_eq!(lengths(ChunkClass::Small, &[]), [0; 0]);
        assert_eq!(lengths(ChunkClass::Small, &[1]), [1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A window of the longest chunk is enough: reading a file in pieces finds the same cuts.
        #[test]
        fn a_window_cuts_like_the_whole_file(seed in 1u64.., length in 0usize..1_000_000) {
            let data = noise(seed, length);
            let class = ChunkClass::Small;
            let chunker = Chunker::new(class);
            let mut at = 0;
            for whole in lengths(class, &data) {
                let end = data.len().min(at + class.longest());
                prop_assert_eq!(chunker.cut(&data[at..end]), whole);
                at += whole;
                prop_assert!(whole <= class.longest());
                prop_assert!(whole >= class.shortest() || at == data.len());
            }
            prop_assert_eq!(at, data.len());
        }
    }
}
