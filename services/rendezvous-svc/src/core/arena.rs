//! Millions of short byte strings, kept apart from the heap.
//!
//! Between everything else that comes and goes they would tear the heap into holes all over the memory, and every lookup would
//! touch three of its pages for the first time. Here they lie in cells of their size, these in pages, and the pages in regions
//! that the system is asked to map by huge pages.
//!
//! Promises: what is put in is there until it is taken, at one place. Its cell is longer by 17 bytes at most, or by an eighth and 2
//! bytes if that is more, and no shorter than 32. The lowest page with room is filled first, and an empty page serves any size again; so memory stays near what is
//! kept, and of what was kept once and is not any more only pages remain of which a part is still in use.
//!
//! The way is that of slab allocators (Bonwick, *The Slab Allocator*, 1994; size classes as jemalloc spaces them).

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use memmap2::{Advice, MmapMut};

/// Cells of one size lie in a page.
const PAGE: usize = 64 * 1024;
/// Pages are mapped so many at a time.
const REGION_PAGES: usize = 256;

/// Where a cell may begin.
const STEP: usize = 16;
/// Sizes of cells: steps of 16 bytes, and of an eighth once that is more.
const SIZES: [usize; 48] = sizes();
const SMALLEST: usize = 32;
/// Before the content stands its length; in a free cell, the number of the next free one.
const PREFIX: usize = 2;
/// Of the cache.
const LINE: usize = 64;
/// There is no next one.
const NONE: u16 = u16::MAX;

const fn sizes() -> [usize; 48] {
    let mut sizes = [0; 48];
    let (mut left, mut size) = (sizes.as_mut_slice(), SMALLEST);
    while let [next, rest @ ..] = left {
        *next = size;
        let eighth = (1 << size.ilog2()) / 8;
        size += if eighth > STEP { eighth } else { STEP };
        left = rest;
    }
    sizes
}

/// Where something lies, in steps of [`STEP`] bytes and from one on. It is good until it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece(NonZeroU32);

impl Piece {
    fn new(page: usize, offset: usize) -> Option<Self> {
        let at = u32::try_from((page * PAGE + offset) / STEP).ok()?;
        at.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    /// Its page, and where it begins there.
    const fn place(self) -> (usize, usize) {
        let at = (self.0.get() - 1) as usize * STEP;
        (at / PAGE, at % PAGE)
    }
}

#[derive(Clone, Copy, Debug)]
struct Page {
    /// Index into [`SIZES`].
    class: usize,
    /// Cells in use.
    used: u16,
    /// Cells that were in use at any time; those behind them were not.
    begun: u16,
    /// The first free one of those.
    free: u16,
}

impl Page {
    fn size(&self) -> usize {
        SIZES.get(self.class).copied().unwrap_or(PAGE)
    }

    fn is_full(&self) -> bool {
        usize::from(self.used) == PAGE / self.size()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Arena {
    regions: Vec<MmapMut>,
    pages: Vec<Page>,
    /// Pages with room, by class.
    roomy: [BTreeSet<usize>; SIZES.len()],
    /// Pages without content.
    empty: BTreeSet<usize>,
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            pages: Vec::new(),
            roomy: std::array::from_fn(|_| BTreeSet::new()),
            empty: BTreeSet::new(),
        }
    }
}

impl Arena {
    /// Keeps a copy of `content`. `None` if that is longer than anything that is kept here, or the system gives no memory.
    pub(super) fn put(&mut self, content: &[u8]) -> Option<Piece> {
        let class = SIZES.partition_point(|size| *size < PREFIX + content.len());
        let number = self.page_for(class)?;
        let page = *self.pages.get(number)?;
        let cell = if page.free == NONE { page.begun } else { page.free };
        let piece = Piece::new(number, usize::from(cell) * page.size())?;
        let bytes = self.behind_mut(piece)?;
        let (prefix, room) = bytes.split_first_chunk_mut::<PREFIX>()?;
        let next = u16::from_le_bytes(*prefix);
        *prefix = u16::try_from(content.len()).ok()?.to_le_bytes();
        room.get_mut(..content.len())?.copy_from_slice(content);

        let page = self.pages.get_mut(number)?;
        page.used += 1;
        match page.free {
            NONE => page.begun += 1,
            _ => page.free = next,
        }
        if page.is_full() {
            self.roomy.get_mut(class)?.remove(&number);
        }
        Some(piece)
    }

    /// What was put in.
    pub(super) fn get(&self, piece: Piece) -> &[u8] {
        let content = || {
            let (length, content) = self.behind(piece)?.split_first_chunk::<PREFIX>()?;
            content.get(..u16::from_le_bytes(*length).into())
        };
        content().unwrap_or_default()
    }

    /// Touches the lines of the cache in which an ordinary one lies.
    pub(super) fn touch(&self, piece: Piece) -> u8 {
        let bytes = self.behind(piece).unwrap_or_default();
        [0, 1, 2, 3]
            .map(|line| bytes.get(line * LINE).copied().unwrap_or_default())
            .iter()
            .fold(0, |all, one| all ^ one)
    }

    /// Gives the room of something back.
    pub(super) fn take(&mut self, piece: Piece) {
        let (number, from) = piece.place();
        let Some(page) = self.pages.get(number).copied() else { return };
        if let Some(prefix) = self.behind_mut(piece).and_then(|cell| cell.first_chunk_mut::<PREFIX>()) {
            *prefix = page.free.to_le_bytes();
        }
        let (Some(page), Some(roomy)) = (self.pages.get_mut(number), self.roomy.get_mut(page.class)) else {
            return;
        };
        page.used = page.used.saturating_sub(1);
        page.free = u16::try_from(from / page.size()).unwrap_or(NONE);
        if page.used == 0 {
            roomy.remove(&number);
            self.empty.insert(number);
        } else {
            roomy.insert(number);
        }
    }

    /// A page with room for one more of this class.
    fn page_for(&mut self, class: usize) -> Option<usize> {
        let roomy = self.roomy.get_mut(class)?;
        if let Some(number) = roomy.first() {
            return Some(*number);
        }
        let page = Page { class, used: 0, begun: 0, free: NONE };
        let number = match self.empty.pop_first() {
            Some(number) => {
                *self.pages.get_mut(number)? = page;
                number
            }
            None => {
                if self.pages.len() == self.regions.len() * REGION_PAGES {
                    self.regions.push(region()?);
                }
                self.pages.push(page);
                self.pages.len() - 1
            }
        };
        roomy.insert(number);
        Some(number)
    }

    /// All of a region from the beginning of a piece on.
    fn behind(&self, piece: Piece) -> Option<&[u8]> {
        let (page, from) = piece.place();
        self.regions.get(page / REGION_PAGES)?.get(page % REGION_PAGES * PAGE + from..)
    }

    fn behind_mut(&mut self, piece: Piece) -> Option<&mut [u8]> {
        let (page, from) = piece.place();
        self.regions.get_mut(page / REGION_PAGES)?.get_mut(page % REGION_PAGES * PAGE + from..)
    }
}

/// Memory is taken from the system when it is written to for the first time.
fn region() -> Option<MmapMut> {
    let region = MmapMut::map_anon(REGION_PAGES * PAGE).ok()?;
    // A lookup then finds its page without a walk through tables that are not in the cache. Not every system has them.
    #[cfg(target_os = "linux")]
    let _ = region.advise(Advice::HugePage);
    Some(region)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// No signed record is longer than 4096 bytes.
    const LONGEST: usize = 4096 + 512 - PREFIX;

    #[test]
    fn sizes_are_close_and_reach_to_the_longest() {
        assert!(SIZES.windows(2).all(|pair| pair[1] - pair[0] <= (pair[0] / 8).max(16)), "{SIZES:?}");
        assert_eq!(SIZES.last(), Some(&(LONGEST + PREFIX)));
        assert_eq!(Piece::new(3, 32 * STEP).unwrap().place(), (3, 32 * STEP));
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let mut arena = Arena::default();
        assert_eq!(arena.put(&[7; LONGEST + 1]), None);
        let piece = arena.put(&[7; LONGEST]).unwrap();
        assert_eq!(arena.get(piece), [7; LONGEST]);
    }

    #[test]
    fn an_empty_page_serves_any_size() {
        let mut arena = Arena::default();
        for size in [1, 30, 100, 4000] {
            let pieces: Vec<_> = (0..20 * PAGE / (size + PREFIX).max(SMALLEST))
                .map(|n| arena.put(&vec![n as u8; size]).unwrap())
                .collect();
            for (n, piece) in pieces.iter().enumerate() {
                assert_eq!(arena.get(*piece), vec![n as u8; size]);
            }
            pieces.into_iter().for_each(|piece| arena.take(piece));
            assert_eq!(arena.empty.len(), arena.pages.len());
        }
        assert!(arena.pages.len() <= 24, "{}", arena.pages.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_keeps_what_a_list_keeps(steps in proptest::collection::vec((any::<u16>(), 0..600_usize), 1..400)) {
            let (mut arena, mut kept) = (Arena::default(), Vec::new());
            for (n, (pick, length)) in steps.into_iter().enumerate() {
                if pick % 3 == 0 && !kept.is_empty() {
                    let (piece, _) = kept.swap_remove(usize::from(pick) % kept.len());
                    arena.take(piece);
                } else {
                    let content = vec![n as u8; length];
                    kept.push((arena.put(&content).unwrap(), content));
                }
                for (piece, content) in &kept {
                    prop_assert_eq!(arena.get(*piece), content);
                }
            }
            let used: usize = arena.pages.iter().map(|page| usize::from(page.used)).sum();
            prop_assert_eq!(used, kept.len());
        }
    }
}
