//! What holds for whole manifests.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::model::chunking::ChunkClass;
use crate::model::path::PackagePath;

type Pages = HashMap<Digest, Vec<u8>>;

fn path(text: &str) -> PackagePath {
    text.parse().unwrap()
}

fn chunk(size: u32, seed: u64) -> ChunkRef {
    ChunkRef { size, digest: Digest::of(&seed.to_le_bytes()) }
}

fn file(name: &str, class: ChunkClass, chunks: &[ChunkRef], pages: &mut Pages) -> Entry {
    let mut emit = keep(pages);
    let mut list = ChunkListBuilder::new(class);
    for chunk in chunks {
        list.push(*chunk, &mut emit).unwrap();
    }
    Entry::file(path(name), list.finish(&path(name), name.ends_with(".sh"), &mut emit).unwrap())
}

fn keep(pages: &mut Pages) -> impl FnMut(PageRef, &[u8]) -> Result<(), ManifestError> {
    |page, bytes| {
        pages.insert(page.digest(), bytes.to_vec());
        Ok(())
    }
}

fn build(entries: &[Entry], pages: &mut Pages) -> Result<(Digest, ManifestRoot), ManifestError> {
    let mut emit = keep(pages);
    let mut builder = ManifestBuilder::default();
    for entry in entries {
        builder.push(entry, &mut emit)?;
    }
    builder.finish(&mut emit)
}

/// Everything in a manifest, chunks of paged files joined.
fn read(manifest: &Digest, pages: &Pages) -> Result<Vec<(Entry, Vec<ChunkRef>)>, ManifestError> {
    let mut reader = ManifestReader::new(manifest, &pages[manifest])?;
    let mut out: Vec<(Entry, Vec<ChunkRef>)> = Vec::new();
    while let Some(page) = { reader.upcoming().next() } {
        match reader.page(&pages[&page.digest()])? {
            Page::Index => {}
            Page::Entries { first, entries } => {
                assert_eq!(first, out.len() as u64);
                for entry in entries {
                    let chunks = match entry.content() {
                        Content::File(f) => match f.chunks() {
                            Chunks::One => vec![ChunkRef { size: f.size() as u32, digest: f.digest() }],
                            Chunks::Listed { list, .. } => list.clone(),
                            Chunks::None | Chunks::Paged { .. } => Vec::new(),
                        },
                        Content::Directory | Content::Symlink(_) => Vec::new(),
                    };
                    out.push((entry, chunks));
                }
            }
            Page::Chunks { entry, offset, chunks } => {
                let known = &mut out[entry as usize].1;
                assert_eq!(offset, known.iter().map(|c| u64::from(c.size)).sum::<u64>());
                known.extend(chunks);
            }
        }
    }
    reader.finish()?;
    Ok(out)
}

fn small(pages: &mut Pages) -> Vec<Entry> {
    vec![
        Entry::directory(path("bin")),
        file("bin/run.sh", ChunkClass::Small, &[chunk(5, 1)], pages),
        Entry::symlink(path("bin/same"), "run.sh").unwrap(),
        file("big", ChunkClass::Small, &[chunk(70_000, 2), chunk(20_000, 3), chunk(1, 4)], pages),
        file("empty", ChunkClass::Small, &[], pages),
        Entry::directory(path("leer ü")),
    ]
}

/// The root, its only page, and the digest of a manifest of every kind of entry.
const GOLDEN_ROOT: &str = "080110011896bf0520032806300442250a2074f7ef2038fd7da242e9c49c1b27a2e20d13644d2ac67e657e8dc30211e9d98210af02";
const GOLDEN_PAGE: &str = concat!(
    "0a9d010a0362696710011891bf0532205d09bf992925e7b86e3f2390e10afa8707036197860b085eb7bc99fa08e2e83e3810",
    "426c70110100ea21c7b3c885cf2fb547bb51016c8bbbaca21db264cc9f332769ad8dd895f0a3204e0000e3d5003ead1a9363",
    "80020220637f7b8e1c2812992da64345e823b227195fb97c01000000846333980f613b6bffc8021457063c938c56ae0cee82",
    "eb27c27cc625c2ca116a0a070a0362696e10020a340a0a62696e2f72756e2e736810011805200132201a0d12016999e47689",
    "dae5744d2b8c1903faf7ca2886a658150083100ef2c8ee0a140a0862696e2f73616d6510032a0672756e2e73680a2b0a0565",
    "6d70747910013220af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f32620a0b0a076c65657220c3",
    "bc1002",
);
const GOLDEN_DIGEST: &str = "0340a09fc923155f81b8d44c9650edb20ea726f60440ab384ceb558e33a1e2cb";

#[test]
fn the_golden_manifest_never_changes() {
    let mut pages = Pages::new();
    let (digest, root) = build(&small_sorted(&mut pages), &mut pages).unwrap();
    assert_eq!(hex::encode(root.encode()), GOLDEN_ROOT);
    assert_eq!(hex::encode(&pages[&root.pages()[0].digest()]), GOLDEN_PAGE);
    assert_eq!(digest.to_string(), GOLDEN_DIGEST);
    assert_eq!(read(&digest, &pages).unwrap().len(), 6);
}

#[test]
fn a_manifest_of_nothing_is_a_root_alone() {
    let mut pages = Pages::new();
    let (nothing, _) = build(&[], &mut pages).unwrap();
    assert_eq!(hex::encode(&pages[&nothing]), "08011001");
    assert!(read(&nothing, &pages).unwrap().is_empty());
}

#[test]
fn a_long_chunk_list_has_pages_of_its_own() {
    let mut pages = Pages::new();
    let chunks: Vec<_> = (0..60_000).map(|i| chunk(20_000 + (i % 7) as u32, i)).collect();
    let entries = [
        file("a", ChunkClass::Small, &chunks, &mut pages),
        file("b", ChunkClass::Small, &chunks[..257], &mut pages),
        file("c", ChunkClass::Small, &chunks[..256], &mut pages),
    ];
    let (digest, root) = build(&entries, &mut pages).unwrap();
    assert_eq!(root.chunk_count(), 60_000 + 257 + 256);
    let read = read(&digest, &pages).unwrap();
    assert_eq!(read[0].1, chunks);
    assert_eq!(read[1].1, chunks[..257]);
    let Content::File(paged) = entries[0].content() else { unreachable!() };
    let Chunks::Paged { pages, .. } = paged.chunks() else { unreachable!() };
    assert_eq!(
        pages.iter().map(|p| p.size() / 36).collect::<Vec<_>>(),
        [29_127, 29_127, 60_000 - 2 * 29_127]
    );
    let Content::File(inline) = entries[2].content() else { unreachable!() };
    assert!(matches!(inline.chunks(), Chunks::Listed { .. }));
}

#[test]
fn a_wrong_long_chunk_list_is_refused() {
    let mut pages = Pages::new();
    let chunks: Vec<_> = (0..300).map(|i| chunk(20_000, i)).collect();
    let right = file("a", ChunkClass::Small, &chunks, &mut pages);
    // The same number of bytes in other chunks: the list's digest is another, the pages' digests are right.
    let mut other: Vec<_> = chunks.clone();
    other.swap(0, 1);
    let wrong = file("a", ChunkClass::Small, &other, &mut pages);
    let (Content::File(right), Content::File(wrong)) = (right.content(), wrong.content()) else {
        unreachable!()
    };
    let Chunks::Paged { pages: list, .. } = wrong.chunks() else { unreachable!() };
    let mut wire = Entry::file(path("a"), right.clone()).to_wire();
    wire.chunk_pages = list.iter().map(|p| p.to_wire()).collect();
    let entry = Entry::from_wire(&wire).unwrap();
    let (digest, _) = build(&[entry], &mut pages).unwrap();
    assert_eq!(read(&digest, &pages).unwrap_err().reason(), Reason::ManifestInvalid);
}

/// Many entries with names that resemble those of real folders.
fn many(count: u32, pages: &mut Pages) -> BTreeMap<PackagePath, Entry> {
    let mut entries = BTreeMap::new();
    for i in 0..count {
        let name = format!("crate-{:05}/src/some_module_{i:07}.rs", i / 40);
        for parent in [format!("crate-{:05}", i / 40), format!("crate-{:05}/src", i / 40)] {
            entries.entry(path(&parent)).or_insert_with(|| Entry::directory(path(&parent)));
        }
        entries
            .insert(path(&name), file(&name, ChunkClass::Small, &[chunk(1000 + i % 9000, i.into())], pages));
    }
    entries
}

#[test]
fn a_new_file_changes_few_pages() {
    let mut pages = Pages::new();
    let mut entries = many(20_000, &mut pages);
    let all = |entries: &BTreeMap<_, Entry>| entries.values().cloned().collect::<Vec<_>>();
    let (_, before) = build(&all(&entries), &mut pages).unwrap();
    entries.insert(path("crate-00100/new"), Entry::directory(path("crate-00100/new")));
    let (digest, after) = build(&all(&entries), &mut pages).unwrap();
    let fresh = after.pages().iter().filter(|p| !before.pages().contains(p)).count();
    assert!(before.pages().len() > 5, "{}", before.pages().len());
    assert!(fresh <= 2, "{fresh} of {} pages changed", after.pages().len());
    assert_eq!(read(&digest, &pages).unwrap().len(), entries.len());
}

#[test]
fn many_pages_are_put_behind_index_pages() {
    let mut pages = Pages::new();
    // Long names, so that pages fill quickly.
    let entries: Vec<_> =
        (0..420_000u32).map(|i| Entry::directory(path(&format!("{i:07}{}", "x".repeat(1000))))).collect();
    let (digest, root) = build(&entries, &mut pages).unwrap();
    assert_eq!(root.index_levels, 1);
    assert!(root.encode().len() <= limits::MANIFEST_ROOT_BYTES);
    assert!(pages.values().all(|p| p.len() <= limits::MANIFEST_PAGE_BYTES));
    let mut reader = ManifestReader::new(&digest, &pages[&digest]).unwrap();
    while let Some(page) = { reader.upcoming().next() } {
        reader.page(&pages[&page.digest()]).unwrap();
    }
    assert_eq!(reader.finish().unwrap().entry_count(), 420_000);
}

/// A manifest of these entries as a hostile publisher would encode it, without checks.
fn forged(entries: &[wire::Entry], stated: (u64, u64, u64), pages: &mut Pages) -> Digest {
    let page = wire::EntryPage { entries: entries.to_vec() }.encode_to_vec();
    let root = ManifestRoot {
        total_size: stated.0,
        file_count: stated.1,
        entry_count: entries.len() as u64,
        chunk_count: stated.2,
        index_levels: 0,
        pages: vec![PageRef::to(&page).unwrap()],
    };
    pages.insert(Digest::of(&page), page);
    let digest = Digest::of(&root.encode());
    pages.insert(digest, root.encode());
    digest
}

fn refused(entries: &[wire::Entry], stated: (u64, u64, u64)) -> Reason {
    let mut pages = Pages::new();
    let digest = forged(entries, stated, &mut pages);
    read(&digest, &pages).unwrap_err().reason()
}

fn folder(name: &str) -> wire::Entry {
    wire::Entry { path: name.into(), kind: wire::EntryKind::Directory.into(), ..wire::Entry::default() }
}

fn tiny(name: &str) -> wire::Entry {
    wire::Entry {
        path: name.into(),
        kind: wire::EntryKind::File.into(),
        size: 3,
        file_digest: Digest::of(b"abc").to_wire(),
        ..wire::Entry::default()
    }
}

#[test]
fn hostile_paths_are_refused() {
    for bad in ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b"] {
        assert_eq!(refused(&[tiny(bad)], (3, 1, 1)), Reason::PathInvalid, "{bad}");
    }
    let link = wire::Entry {
        path: "l".into(),
        kind: wire::EntryKind::Symlink.into(),
        link_target: "../x".into(),
        ..wire::Entry::default()
    };
    assert_eq!(refused(&[link], (0, 0, 0)), Reason::SymlinkEscapes);
}

#[test]
fn disorder_duplicates_and_orphans_are_refused() {
    let invalid = Reason::ManifestInvalid;
    assert_eq!(refused(&[tiny("b"), tiny("a")], (6, 2, 2)), invalid);
    assert_eq!(refused(&[tiny("a"), tiny("a")], (6, 2, 2)), invalid);
    assert_eq!(refused(&[tiny("a/b")], (3, 1, 1)), invalid);
    assert_eq!(refused(&[tiny("a"), tiny("a/b")], (6, 2, 2)), invalid);
    // "a" is a string prefix of "ab", but not its parent.
    assert_eq!(refused(&[folder("a"), folder("ab"), tiny("abc/d")], (3, 1, 1)), invalid);
    let mut pages = Pages::new();
    // "a-b" and "a.b" come between "a" and "a/b".
    let fine = [folder("a"), folder("a-b"), tiny("a-b/c"), tiny("a.b"), tiny("a/b")];
    let digest = forged(&fine, (9, 3, 3), &mut pages);
    assert_eq!(read(&digest, &pages).unwrap().len(), 5);
}

#[test]
fn wrong_totals_are_refused() {
    for stated in
        [(4, 1, 1), (2, 1, 1), (3, 0, 1), (3, 1, 0), (u64::MAX, 1, 1), (3, 1, u64::MAX), (3, u64::MAX, 1)]
    {
        assert_eq!(refused(&[tiny("a")], stated), Reason::ManifestInvalid, "{stated:?}");
    }
}

#[test]
fn entries_that_say_too_much_are_refused() {
    let no = |entry: wire::Entry| refused(&[entry], (3, 1, 1));
    let invalid = Reason::ManifestInvalid;
    assert_eq!(no(wire::Entry { link_target: "x".into(), ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { chunk_bits: 16, ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { kind: 0, ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { kind: 9, ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { size: 300_000, ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { size: u64::MAX, ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { size: 0, ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { file_digest: vec![1; 31].into(), ..tiny("a") }), invalid);
    assert_eq!(no(wire::Entry { size: 1, ..folder("a") }), invalid);
    let mut list = Vec::new();
    for _ in 0..3 {
        chunk(1, 1).append_to(&mut list);
    }
    // Three chunks of one byte each: shorter than any class allows.
    let chunked = wire::Entry {
        chunk_bits: 16,
        file_digest: Digest::of(&list).to_wire(),
        chunks: list.into(),
        ..tiny("a")
    };
    assert_eq!(no(chunked), invalid);
}

#[test]
fn another_encoding_of_the_same_is_refused() {
    let mut pages = Pages::new();
    let (digest, root) = build(&small_sorted(&mut pages), &mut pages).unwrap();
    let right = pages[&digest].clone();
    // An unknown field, and a default written out.
    for extra in [&[0xf8, 0x07, 1][..], &[0x38, 0]] {
        let bytes = [&right[..], extra].concat();
        assert_eq!(ManifestRoot::parse(&bytes), Err(ManifestError::NotCanonical("root")));
    }
    let page = &pages[&root.pages()[0].digest()];
    assert!(EntryPage::parse(page).is_ok());
    assert!(EntryPage::parse(&[&page[..], &[0x10, 0]].concat()).is_err());
    assert!(EntryPage::parse(&page[..page.len() - 1]).is_err());
    assert!(IndexPage::parse(&vec![0; limits::MANIFEST_PAGE_BYTES + 1]).is_err());
}

fn small_sorted(pages: &mut Pages) -> Vec<Entry> {
    let mut entries = small(pages);
    entries.sort_by(|a, b| a.path().cmp(b.path()));
    entries
}

#[test]
fn bytes_that_are_not_the_page_are_refused() {
    let mut pages = Pages::new();
    let (digest, root) = build(&small_sorted(&mut pages), &mut pages).unwrap();
    assert!(matches!(ManifestReader::new(&digest, b"x"), Err(ManifestError::Corrupt(d)) if d == digest));
    let mut reader = ManifestReader::new(&digest, &pages[&digest]).unwrap();
    let mut page = pages[&root.pages()[0].digest()].clone();
    page[9] ^= 1;
    assert_eq!(reader.page(&page).unwrap_err().reason(), Reason::ChunkCorrupt);
    // The right bytes are still taken.
    page[9] ^= 1;
    assert!(reader.page(&page).is_ok());
    assert!(reader.page(&page).is_err());
}

#[test]
fn a_manifest_that_is_not_read_whole_is_not_finished() {
    let mut pages = Pages::new();
    let (digest, _) = build(&small_sorted(&mut pages), &mut pages).unwrap();
    let reader = ManifestReader::new(&digest, &pages[&digest]).unwrap();
    assert!(reader.finish().is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ManifestRoot::parse(&bytes);
        let _ = IndexPage::parse(&bytes);
        let _ = EntryPage::parse(&bytes);
    }

    #[test]
    fn any_tree_survives_its_manifest(names in prop::collection::btree_set("[a-c.\\-]{1,3}(/[a-c.\\-]{1,3}){0,3}", 0..40)) {
        let mut pages = Pages::new();
        let mut entries = BTreeMap::new();
        for name in names {
            let Ok(p) = name.parse::<PackagePath>() else { continue };
            entries.insert(p.clone(), file(p.as_str(), ChunkClass::Small, &[chunk(7, 7)], &mut pages));
        }
        // Whatever is above another entry is a directory.
        let parents: Vec<PackagePath> = entries.keys().flat_map(|p| {
            let text = p.as_str();
            text.match_indices('/').map(|(at, _)| path(&text[..at])).collect::<Vec<_>>()
        }).collect();
        for parent in parents {
            entries.insert(parent.clone(), Entry::directory(parent));
        }
        let entries: Vec<_> = entries.into_values().collect();
        let (digest, _) = build(&entries, &mut pages).unwrap();
        let back: Vec<_> = read(&digest, &pages).unwrap().into_iter().map(|(e, _)| e).collect();
        prop_assert_eq!(back, entries);
    }
}
