//! Deltas whose bases were lost where they are on record, and are elsewhere.

use super::Region;
use super::error::RegionError;
use crate::model::account::AccountId;
use crate::model::catalog::Catalog;
use crate::model::objects::{PackName, PackState};
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
        let catalog = self.catalog()?;
        let mut looked = Looked { region: self, catalog: &catalog, live: HashMap::new() };
        let mut rebased = Vec::new();
        for (&pack, known) in catalog.packs.iter().filter(|(_, pack)| pack.state == PackState::Live) {
            watch()?;
            if looked.are_all_live(&known.record.bases)? {
                continue;
            }
            // What does not say what it is on stays as it is on record.
            let trailer = read_trailer(&*self.0.storage, self.0.header.id, &known.record);
            let bases =
                trailer.map(|trailer| trailer.deltas().map(|(_, base)| base).collect::<BTreeSet<u64>>());
            if let Some(bases) = bases.ok().map(|bases| looked.packs_of(&bases)).transpose()?.flatten() {
                rebased.push((pack, bases.into_iter().filter(|base| *base != pack).collect::<Vec<_>>()));
            }
        }
        if rebased.is_empty() {
            return Ok(());
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
        done?;
        // What was looked for in vain is looked for again.
        self.forget_presence(rebased.iter().map(|(pack, _)| *pack));
        Ok(())
    }
}

/// Packs that were looked for.
struct Looked<'a> {
    region: &'a Region,
    catalog: &'a Catalog,
    /// Whether they are live, and there.
    live: HashMap<PackName, bool>,
}

impl Looked<'_> {
    fn is_live(&mut self, name: PackName) -> Result<bool, RegionError> {
        if let Some(known) = self.live.get(&name) {
            return Ok(*known);
        }
        let is_live = match self.catalog.packs.get(&name) {
            Some(pack) if pack.state == PackState::Live => {
                self.region.is_whole_object(name, pack.record.len)?
            }
            _ => false,
        };
        self.live.insert(name, is_live);
        Ok(is_live)
    }

    fn are_all_live(&mut self, names: &[PackName]) -> Result<bool, RegionError> {
        for name in names {
            if !self.is_live(*name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Packs that have these bases, by the leading bytes of their ids, as plain frames; none if one is in none.
    fn packs_of(&mut self, bases: &BTreeSet<u64>) -> Result<Option<BTreeSet<PackName>>, RegionError> {
        let mut packs = BTreeSet::new();
        // All at once: each look at the index is one at the log, too.
        let all = self.region.with_index(|index| {
            bases.iter().map(|base| index.places_leading(*base)).collect::<Result<Vec<_>, _>>()
        })?;
        for places in all {
            let mut found = None;
            for (_, place) in places.into_iter().filter(|(_, place)| place.codec.is_plain()) {
                if found.is_none() && self.is_live(place.pack)? {
                    found = Some(place.pack);
                }
            }
            let Some(found) = found else { return Ok(None) };
            packs.insert(found);
        }
        Ok(Some(packs))
    }
}
