//! Deltas whose bases were lost where they are on record, and are elsewhere.

use super::Region;
use super::error::RegionError;
use crate::model::account::AccountId;
use crate::model::catalog::Pack;
use crate::model::objects::{PackName, PackRecord, PackState};
use crate::model::op::Op;
use crate::pack::trailer::read_trailer;
use std::collections::{BTreeSet, HashMap};

impl Region {
    /// Puts live packs whose deltas are on packs that are gone or damaged on record with where all those bases are, as plain
    /// frames in live packs that are there, if they are.
    pub fn base_elsewhere<E: From<RegionError>>(
        &self,
        account: AccountId,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let catalog = self.catalog().map_err(E::from)?;
        let mut looked: HashMap<PackName, bool> = HashMap::new();
        let mut is_there = |name: PackName| {
            let is_there = |pack: &Pack| pack.state == PackState::Live && self.is_whole_object(&pack.record);
            *looked.entry(name).or_insert_with(|| catalog.packs.get(&name).is_some_and(is_there))
        };
        let mut rebased = Vec::new();
        for (&pack, known) in catalog.packs.iter().filter(|(_, pack)| pack.state == PackState::Live) {
            watch()?;
            if known.record.bases.iter().all(|base| is_there(*base)) {
                continue;
            }
            let Ok(trailer) = read_trailer(&*self.0.storage, self.0.header.id, &known.record) else {
                continue;
            };
            let mut bases = BTreeSet::new();
            for (_, base) in trailer.deltas() {
                let places = self.with_index(|index| index.places_leading(base))?;
                let plain = places.into_iter().filter(|(_, place)| place.codec.is_plain());
                bases.insert(plain.map(|(_, place)| place.pack).find(|place| is_there(*place)));
            }
            let bases: Option<BTreeSet<PackName>> = bases.into_iter().collect();
            let bases = bases.map(|bases| bases.into_iter().filter(|base| *base != pack).collect());
            rebased.extend(bases.map(|bases: Vec<PackName>| (pack, bases)));
        }
        let done = self.commit::<_, RegionError>(account, |now| {
            let is_live =
                |pack: &PackName| now.packs.get(pack).is_some_and(|pack| pack.state == PackState::Live);
            let holds =
                |(pack, bases): &&(PackName, Vec<PackName>)| is_live(pack) && bases.iter().all(is_live);
            let ops = rebased.iter().filter(holds);
            let ops: Vec<Op> =
                ops.map(|(pack, bases)| Op::RebasePack { pack: *pack, bases: bases.clone() }).collect();
            Ok((ops, ()))
        });
        done.map_err(E::from)?;
        // What was looked for in vain is looked for again.
        self.forget_presence(rebased.iter().map(|(pack, _)| *pack));
        Ok(())
    }

    /// Whether a pack's object is there in its length.
    fn is_whole_object(&self, pack: &PackRecord) -> bool {
        self.0.storage.open(&pack.name.to_string()).is_ok_and(|object| object.len() == pack.len)
    }
}
