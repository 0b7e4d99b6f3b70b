//! Which stored chunks resemble a new one: stored feature tables, mapped, and the features of what is new.

use crate::chunk::features::Features;
use crate::format::error::FormatError;
use crate::format::features::{BASES_MAX, FeatureTable, HEADER_BYTES, Slot, decode_header, encode, slots_of};
use crate::io::map::Bytes;
use crate::io::storage::{Storage, StorageError};
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::FeatureTableName;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Tables with more bases than this together are not merged: a merge builds the new table in memory.
const MERGED_BASES_MAX: usize = 4 << 20;
const _: () = assert!(MERGED_BASES_MAX <= BASES_MAX);

/// A stored table.
pub struct Table {
    /// Its name.
    pub name: FeatureTableName,
    bytes: Bytes,
    table: FeatureTable,
}

/// What a chunk may be stored against: the leading bytes of its id, and how many features are in common.
pub type Candidate = (u64, u32);

/// Opens the feature tables of a region, largest first. What cannot be opened or read is left out: it is a cache.
pub fn open_tables(storage: &dyn Storage, region: RegionId) -> Vec<Table> {
    let listed = storage.list(FeatureTableName::FOLDER).unwrap_or_default();
    let mut tables: Vec<Table> = Vec::new();
    for name in listed.iter().filter_map(|listed| FeatureTableName::parse(&listed.name)) {
        let Ok(bytes) = storage.open(&name.to_string()).and_then(|object| object.bytes()) else { continue };
        if bytes.load(0..HEADER_BYTES).is_ok()
            && let Ok(table) = decode_header(bytes.as_ref())
            && table.region == region
        {
            tables.push(Table { name, bytes, table });
        }
    }
    tables.sort_by_key(|table| (Reverse(table.table.bases), table.name));
    tables
}

impl Table {
    /// Number of bases in it.
    pub const fn bases(&self) -> usize {
        self.table.bases as usize
    }

    /// How many of its bases are `wanted` still; none of one that cannot be read.
    pub fn count_wanted(&self, is_wanted: impl Fn(u64) -> bool) -> usize {
        if self.bytes.load(0..self.bytes.as_ref().len()).is_err() {
            return 0;
        }
        let bases = (0..self.table.bases).filter_map(|number| self.table.base(self.bytes.as_ref(), number));
        bases.filter(|base| is_wanted(*base)).count()
    }

    /// Adds one to the count of every base that has one of the features.
    fn count(&self, features: &Features, counts: &mut Counts) {
        for &feature in features {
            for number in self.table.with_feature(self.bytes.as_ref(), feature) {
                if let Some(base) = self.table.base(self.bytes.as_ref(), number) {
                    counts.add(base);
                }
            }
        }
    }
}

/// How many bases are counted by looking through all of them.
const FEW: usize = 32;

/// Bases in the order in which they were met, and how often. Mostly a few; where many have the same features, very many.
#[derive(Default)]
struct Counts {
    list: Vec<Candidate>,
    /// The place of each in the list, if they are no few.
    places: HashMap<u64, usize>,
}

impl Counts {
    fn add(&mut self, base: u64) {
        let place = match self.list.len() {
            ..FEW => self.list.iter().position(|(known, _)| *known == base),
            _ => self.places.get(&base).copied(),
        };
        if let Some(place) = place {
            self.list[place].1 += 1;
            return;
        }
        self.list.push((base, 1));
        match self.list.len() {
            ..FEW => {}
            FEW => self.places.extend(self.list.iter().enumerate().map(|(place, (base, _))| (*base, place))),
            len => _ = self.places.insert(base, len - 1),
        }
    }
}

/// Features of chunks that are in no table yet.
#[derive(Default)]
pub struct Fresh {
    /// The newest chunk with each feature.
    newest: HashMap<u32, u32>,
    bases: Vec<u64>,
    features: Vec<Features>,
    ids: HashMap<u64, ChunkId>,
}

impl Fresh {
    /// Adds a chunk that others may be stored against.
    pub fn add(&mut self, id: ChunkId, features: &Features) {
        let number = u32::try_from(self.bases.len()).unwrap_or(u32::MAX);
        self.bases.push(id.leading());
        self.features.push(*features);
        self.ids.insert(id.leading(), id);
        for &feature in features {
            self.newest.insert(feature, number);
        }
    }

    /// The chunk that was added whose id begins so.
    pub fn id(&self, leading: u64) -> Option<ChunkId> {
        self.ids.get(&leading).copied()
    }

    /// Those of some chunks, given by how their ids begin.
    pub fn of(self, is_wanted: impl Fn(u64) -> bool) -> Self {
        let mut wanted = Self::default();
        for (base, features) in self.bases.iter().zip(&self.features).filter(|(base, _)| is_wanted(**base)) {
            if let Some(id) = self.id(*base) {
                wanted.add(id, features);
            }
        }
        wanted
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }
}

/// Chunks that have features in common with one, most first.
pub fn candidates(features: &Features, fresh: &Fresh, tables: &[Table]) -> Vec<Candidate> {
    let mut counts = Counts::default();
    for feature in features {
        if let Some(&number) = fresh.newest.get(feature) {
            counts.add(fresh.bases[number as usize]);
        }
    }
    for table in tables {
        table.count(features, &mut counts);
    }
    // The sort is stable: of equals the one that was stored last comes first.
    counts.list.sort_by_key(|(_, count)| Reverse(*count));
    counts.list
}

/// Which tables a new one takes in: from the smallest up, as long as each is at most twice what is already in, so that
/// each base is rewritten a logarithmic number of times. `tables` are the largest first.
pub fn choose(tables: &[Table], fresh: usize) -> &[Table] {
    let mut total = fresh;
    let mut kept = tables.len();
    for table in tables.iter().rev() {
        if table.bases() > 2 * total || table.bases() + total > MERGED_BASES_MAX {
            break;
        }
        total += table.bases();
        kept -= 1;
    }
    &tables[kept..]
}

/// Which of some worn tables, each with how many of its bases are wanted, become one: as many as may. Gives those, and the rest.
pub fn choose_worn(mut worn: Vec<(Table, usize)>) -> (Vec<Table>, Vec<(Table, usize)>) {
    let mut total = 0;
    let fits = |(_, wanted): &&(Table, usize)| {
        total += wanted;
        total <= MERGED_BASES_MAX
    };
    let count = worn.iter().take_while(fits).count().max(1);
    let rest = worn.split_off(count.min(worn.len()));
    (worn.into_iter().map(|(table, _)| table).collect(), rest)
}

/// The bytes of a table with the bases of some tables, as far as they are `wanted`, and the fresh ones; one that is in several
/// once, as writers beside each other take in the same tables. A table that is damaged gives an error.
pub fn merge(
    region: RegionId,
    tables: &[Table],
    fresh: &Fresh,
    is_wanted: impl Fn(u64) -> bool,
) -> Result<Vec<u8>, FormatError> {
    for table in tables {
        let unreadable = |e| FormatError::invalid("feature table", format!("it cannot be read: {e}"));
        table.bytes.load(0..table.bytes.as_ref().len()).map_err(unreadable)?;
    }
    let mut bases = Vec::new();
    let all = |table: &Table| {
        let numbers = 0..table.table.bases;
        numbers.filter_map(|number| table.table.base(table.bytes.as_ref(), number)).collect::<Vec<_>>()
    };
    let mut known: Vec<u64> = tables.iter().flat_map(all).chain(fresh.bases.iter().copied()).collect();
    known.sort_unstable();
    known.dedup();
    let mut is_taken = vec![false; known.len()];
    // Whether a base is the first of its kind.
    let mut take =
        |base: u64| known.binary_search(&base).is_ok_and(|at| !std::mem::replace(&mut is_taken[at], true));
    for base in &fresh.bases {
        take(*base);
    }
    // The number that each old number becomes.
    let mut renumbered: Vec<Vec<Option<u32>>> = Vec::new();
    for table in tables {
        let numbers = (0..table.table.bases).map(|number| {
            let base = table.table.base(table.bytes.as_ref(), number);
            let base = base.filter(|base| take(*base) && is_wanted(*base))?;
            bases.push(base);
            u32::try_from(bases.len() - 1).ok()
        });
        renumbered.push(numbers.collect());
    }
    let first = u32::try_from(bases.len()).unwrap_or(u32::MAX);
    bases.extend(&fresh.bases);
    let mut sources: Vec<Box<dyn Iterator<Item = Slot> + '_>> = Vec::new();
    for (table, numbers) in tables.iter().zip(&renumbered) {
        let renumber = |(feature, number): Slot| Some((feature, *numbers.get(number as usize)?.as_ref()?));
        sources.push(Box::new(table.table.slots(table.bytes.as_ref()).filter_map(renumber)));
    }
    sources.push(Box::new(slots_of(&fresh.features, first).into_iter()));
    encode(region, &bases, Merged::new(sources))
}

/// Writes a table, if there is one, and removes those that it replaces; one that cannot be removed costs space and
/// nothing else.
pub fn store(
    storage: &dyn Storage,
    table: Option<(FeatureTableName, &[u8])>,
    replaced: &[Table],
) -> Result<(), StorageError> {
    if let Some((name, bytes)) = table {
        storage.create_from(&name.to_string(), &mut |write| write(bytes))?;
    }
    for table in replaced {
        let _ = storage.delete(&table.name.to_string());
    }
    Ok(())
}

/// Slots of several sources, ascending.
struct Merged<'a> {
    sources: Vec<Box<dyn Iterator<Item = Slot> + 'a>>,
    heap: BinaryHeap<Reverse<(Slot, usize)>>,
}

impl<'a> Merged<'a> {
    fn new(mut sources: Vec<Box<dyn Iterator<Item = Slot> + 'a>>) -> Self {
        let firsts = sources.iter_mut().enumerate();
        let heap = firsts.filter_map(|(number, source)| Some(Reverse((source.next()?, number)))).collect();
        Self { sources, heap }
    }
}

impl Iterator for Merged<'_> {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        let Reverse((slot, number)) = self.heap.pop()?;
        if let Some(next) = self.sources[number].next() {
            self.heap.push(Reverse((next, number)));
        }
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::features::FEATURES;
    use crate::io::memory::Memory;
    use crate::model::ids::SessionId;

    const REGION: RegionId = RegionId([7; 16]);

    fn name(number: u64) -> FeatureTableName {
        FeatureTableName { session: SessionId([1; 16]), number }
    }

    fn id(number: u64) -> ChunkId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        ChunkId(id)
    }

    fn features(seed: u64) -> Features {
        let mut state = seed + 1;
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        })
    }

    #[test]
    fn many_bases_are_counted_as_few_are() {
        let (mut counts, mut expected) = (Counts::default(), Vec::<Candidate>::new());
        for number in 0..5000_u64 {
            let base = number * number % 317;
            counts.add(base);
            match expected.iter_mut().find(|(known, _)| *known == base) {
                Some((_, count)) => *count += 1,
                None => expected.push((base, 1)),
            }
        }
        assert!(expected.len() > 100);
        assert_eq!(counts.list, expected);
    }

    /// Stores a table of these bases together with what it takes in.
    fn store_more(storage: &Memory, number: u64, ids: impl Iterator<Item = u64>) {
        let mut fresh = Fresh::default();
        ids.for_each(|n| fresh.add(id(n), &features(n)));
        let tables = open_tables(storage, REGION);
        let chosen = choose(&tables, fresh.len());
        let bytes = merge(REGION, chosen, &fresh, |base| base != 3).unwrap();
        store(storage, Some((name(number), &bytes)), chosen).unwrap();
    }

    #[test]
    fn tables_grow_by_merging_and_lead_to_every_base() {
        let storage = Memory::new();
        for number in 0..40 {
            store_more(&storage, number, number * 10..number * 10 + 10);
            assert!(open_tables(&storage, REGION).len() <= 6);
        }
        let tables = open_tables(&storage, REGION);
        assert!(tables.is_sorted_by_key(|table| Reverse(table.bases())));
        assert_eq!(tables.iter().map(Table::bases).sum::<usize>(), 399, "one was not wanted");
        for n in (0..400).filter(|n| *n != 3) {
            assert_eq!(candidates(&features(n), &Fresh::default(), &tables)[0], (n, FEATURES as u32));
        }
        assert!(candidates(&features(3), &Fresh::default(), &tables).is_empty());
        assert!(open_tables(&storage, RegionId([8; 16])).is_empty(), "of another region");
    }

    /// Writers beside each other take in the same tables, and each leaves one that has them.
    #[test]
    fn a_base_is_in_a_table_once() {
        let storage = Memory::new();
        store_more(&storage, 0, 0..50);
        let tables = open_tables(&storage, REGION);
        for writer in 1..5 {
            let mut fresh = Fresh::default();
            (0..2).for_each(|n| fresh.add(id(100 * writer + n), &features(100 * writer + n)));
            fresh.add(id(7), &features(7));
            let bytes = merge(REGION, &tables, &fresh, |base| base != 5).unwrap();
            store(&storage, Some((name(writer), &bytes)), &tables).unwrap();
        }
        let tables = open_tables(&storage, REGION);
        assert_eq!(tables.iter().map(Table::bases).collect::<Vec<_>>(), [51; 4], "49, and two new ones");
        let bytes = merge(REGION, &tables, &Fresh::default(), |_| true).unwrap();
        store(&storage, Some((name(9), &bytes)), &tables).unwrap();
        let merged = open_tables(&storage, REGION);
        assert_eq!(merged.iter().map(Table::bases).collect::<Vec<_>>(), [49 + 8]);
        for n in [0, 7, 49, 100, 401] {
            assert_eq!(candidates(&features(n), &Fresh::default(), &merged), [(n, FEATURES as u32)]);
        }
    }

    /// However many there are, what is made anew at once is bounded.
    #[test]
    fn worn_tables_are_renewed_some_at_a_time() {
        let storage = Memory::new();
        for number in 0..5 {
            store_more(&storage, number, number * 1000..number * 1000 + 900);
        }
        let worn = |wanted: &[usize]| -> Vec<(Table, usize)> {
            let mut tables = open_tables(&storage, REGION);
            let table = tables.remove(0);
            let copy = |wanted: &usize| {
                (Table { name: table.name, bytes: table.bytes.clone(), table: table.table }, *wanted)
            };
            wanted.iter().map(copy).collect()
        };
        let sizes = |wanted: &[usize]| {
            let (mut rest, mut sizes) = (worn(wanted), Vec::new());
            while !rest.is_empty() {
                let (some, behind) = choose_worn(rest);
                sizes.push(some.len());
                rest = behind;
            }
            sizes
        };
        const MOST: usize = MERGED_BASES_MAX;
        assert_eq!(sizes(&[1, 2, 0, 0]), [4]);
        assert_eq!(sizes(&[MOST, 0, 1, MOST - 1, 1]), [2, 2, 1]);
        assert_eq!(sizes(&[MOST + 1, 1, 5]), [1, 2]);
    }

    #[test]
    fn the_base_with_most_in_common_comes_first() {
        let storage = Memory::new();
        store_more(&storage, 0, 0..4);
        let mut fresh = Fresh::default();
        fresh.add(id(9), &features(9));
        let mut wanted = features(1);
        wanted[8..].copy_from_slice(&features(9)[8..]);
        wanted[7] = features(2)[7];
        let found = candidates(&wanted, &fresh, &open_tables(&storage, REGION));
        assert_eq!(found, [(1, 7), (9, 4), (2, 1)]);
        assert_eq!((fresh.id(9), fresh.id(1)), (Some(id(9)), None));
    }

    #[test]
    fn what_is_no_table_is_left_out() {
        let storage = Memory::new();
        store_more(&storage, 0, 0..4);
        storage.create(&name(1).to_string(), &[b"nonsense"]).unwrap();
        storage.create("features/x", &[b"nonsense"]).unwrap();
        assert_eq!(open_tables(&storage, REGION).len(), 1);
    }
}
