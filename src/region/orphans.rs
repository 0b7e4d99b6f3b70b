//! Objects that nothing names, left by sessions that are gone: packs and segments that were never registered,
//! manifests that no root has. A session is fenced by a record before what it left is removed; after that nothing it
//! still does can count, so it does not matter whether it is really gone.

use super::Region;
use super::collect::{DELETED_AT_ONCE, Removed};
use super::error::RegionError;
use crate::io::storage::Listed;
use crate::model::account::AccountId;
use crate::model::catalog::Catalog;
use crate::model::ids::SessionId;
use crate::model::objects::{ManifestName, PackName, SegmentName};
use crate::model::op::Op;
use std::collections::{BTreeMap, BTreeSet};

/// Objects that nothing names, of sessions that are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orphans {
    /// The objects.
    pub objects: Vec<Listed>,
    sessions: BTreeSet<SessionId>,
}

impl Orphans {
    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.len).sum()
    }
}

/// An object that a session wrote.
#[derive(Debug, Clone, Copy)]
enum Written {
    Pack(PackName),
    Segment(SegmentName),
    Manifest(ManifestName),
}

impl Written {
    fn parse(name: &str) -> Option<Self> {
        let pack = || PackName::parse(name).map(Self::Pack);
        let segment = || SegmentName::parse(name).map(Self::Segment);
        pack().or_else(segment).or_else(|| ManifestName::parse(name).map(Self::Manifest))
    }

    const fn session(self) -> SessionId {
        match self {
            Self::Pack(name) => name.session,
            Self::Segment(name) => name.session,
            Self::Manifest(name) => name.session,
        }
    }
}

/// Whether the catalogue names an object.
fn is_named(catalog: &Catalog, manifests: &BTreeSet<ManifestName>, written: Written) -> bool {
    match written {
        Written::Pack(name) => catalog.packs.contains_key(&name),
        Written::Segment(name) => catalog.segments.contains_key(&name),
        Written::Manifest(name) => manifests.contains(&name),
    }
}

fn manifests(catalog: &Catalog) -> BTreeSet<ManifestName> {
    catalog.roots().map(|root| root.manifest.name).collect()
}

impl Region {
    /// See [`crate::io::storage::Storage::tidy`].
    pub fn tidy(&self) {
        self.0.storage.tidy();
    }

    /// Finds objects that nothing names, of sessions that are gone. Nothing is changed.
    pub fn find_orphans(&self) -> Result<Orphans, RegionError> {
        self.find_orphans_after(&|_| Vec::new())
    }

    /// The same, as if the operations that a state asks for were on record, too: for a preview.
    pub fn find_orphans_after(&self, ops: &dyn Fn(&Catalog) -> Vec<Op>) -> Result<Orphans, RegionError> {
        // In this order: what is listed was written before a session is asked for a sign of life, and what a
        // session that is gone has registered, it registered before.
        let mut listed = Vec::new();
        for folder in [PackName::FOLDER, SegmentName::FOLDER, ManifestName::FOLDER] {
            listed.extend(self.0.storage.list(folder)?);
        }
        let mut is_gone: BTreeMap<SessionId, bool> = BTreeMap::new();
        for object in &listed {
            let Some(written) = Written::parse(&object.name) else { continue };
            let session = written.session();
            if session != self.0.session && !is_gone.contains_key(&session) {
                is_gone.insert(session, self.0.storage.is_writer_gone(&session.to_string())?);
            }
        }
        let catalog = self.catalog()?;
        let catalog = catalog.after(&ops(&catalog)).map_err(RegionError::Rejected)?;
        let manifests = manifests(&catalog);
        let mut orphans = Orphans::default();
        for object in listed {
            if let Some(written) = Written::parse(&object.name)
                && is_gone.get(&written.session()) == Some(&true)
                && !is_named(&catalog, &manifests, written)
            {
                orphans.sessions.insert(written.session());
                orphans.objects.push(object);
            }
        }
        Ok(orphans)
    }

    /// Fences the sessions of orphans and removes them: those that still are orphans then, for a session may have
    /// shown signs of life just before.
    /// One that cannot be removed does not keep the others.
    pub fn remove_orphans(&self, orphans: &Orphans, account: AccountId) -> Result<Removed, RegionError> {
        if orphans.objects.is_empty() {
            return Ok(Removed::default());
        }
        let fenced = self.commit::<_, RegionError>(account, |catalog| {
            let missing = |session: &&SessionId| !catalog.fenced_sessions.contains(session);
            let sessions: Vec<_> = orphans.sessions.iter().filter(missing).copied().collect();
            let ops = if sessions.is_empty() { vec![] } else { vec![Op::FenceSessions { sessions }] };
            let manifests = manifests(catalog);
            let is_orphan = |object: &&Listed| {
                Written::parse(&object.name).is_some_and(|written| !is_named(catalog, &manifests, written))
            };
            Ok((ops, orphans.objects.iter().filter(is_orphan).cloned().collect::<Vec<_>>()))
        })?;
        let mut done = Removed::default();
        for (number, object) in fenced.into_iter().enumerate() {
            if number % DELETED_AT_ONCE == 0 {
                self.head().check_place(&*self.0.storage)?;
            }
            match self.0.storage.delete(&object.name) {
                Ok(()) => {
                    done.count += 1;
                    done.bytes += object.len;
                }
                Err(error) => done.failure = Some(error.into()),
            }
        }
        Ok(done)
    }
}
