//! Why each rule of collection is there: the same schedule once by the rules, and once with one of them left out. By the
//! rules nothing is lost; without the rule it is, which is what this harness must see.

mod common;

use common::{Caller, MemoryDisk, memory_region, session, small_packs, volume};
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::catalog::Pack;
use imgstore::model::ids::SnapshotId;
use imgstore::model::objects::{PackName, PackState};
use imgstore::model::op::Op;
use imgstore::model::snapshot::Snapshot;
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::ingest::{Ingested, ingest};
use imgstore::region::error::RegionError;
use imgstore::region::session::Session;
use imgstore::region::{Region, RegionOptions};
use std::collections::HashSet;
use std::sync::Arc;

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 0 };

/// A storage that takes every writer for gone, so that nothing but the rules protects what is under way.
struct Stage {
    storage: Memory,
    caller: Caller,
}

impl Stage {
    fn new() -> Self {
        let storage = Memory::new();
        let options = RegionOptions { pack_bytes: 16 << 10, ..small_packs() };
        memory_region(&storage, &options);
        Self { storage, caller: Caller::new(1) }
    }

    fn open(&self) -> Region {
        Region::open(Arc::new(self.storage.clone()), session()).unwrap()
    }

    fn snapshot(&self, bytes: &[u8]) -> SnapshotId {
        self.caller.snapshot(&self.open(), &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id
    }

    /// Content that a deleted snapshot has left.
    fn garbage(&self) -> Vec<u8> {
        let bytes = volume(120_000, 1);
        let id = self.snapshot(&bytes);
        delete_snapshot(&self.open(), id, &self.caller.context()).unwrap();
        bytes
    }

    /// Bytes in a session that are not committed yet.
    fn ingest(&self, session: &mut Session, bytes: &[u8]) -> Ingested {
        ingest(session, &MemoryDisk::new(bytes.to_vec()), &Compression::default(), &self.caller.context())
            .unwrap()
    }

    /// Commits a snapshot of what was ingested, naming these packs.
    fn commit(
        &self,
        region: &Region,
        ingested: &Ingested,
        packs: &[PackName],
    ) -> Result<SnapshotId, OpsError> {
        let mut like = self.like();
        like.id = SnapshotId::from_random(region.random_id()?);
        like.volume_bytes = ingested.volume_bytes;
        like.manifest = ingested.manifest.clone();
        let id = like.id;
        region.commit::<_, OpsError>(self.caller.account, |_| {
            let op = Op::CreateSnapshot { snapshot: Box::new(like.clone()), packs: packs.to_vec() };
            Ok((vec![op], id))
        })
    }

    fn like(&self) -> Snapshot {
        let id = self.snapshot(&[9; 5000]);
        self.open().catalog().unwrap().snapshots[&id].clone()
    }

    fn is_whole(&self, id: SnapshotId, bytes: &[u8]) -> bool {
        self.caller.read_directly(&self.open(), id).is_ok_and(|read| read == bytes)
    }

    fn append(&self, ops: Vec<Op>) {
        self.open().commit::<_, RegionError>(self.caller.account, |_| Ok((ops.clone(), ()))).unwrap();
    }

    /// Everything that is condemned goes.
    fn sweep(&self) {
        let region = self.open();
        let condemned = |pack: &&Pack| matches!(pack.state, PackState::Condemned { .. });
        let catalog = region.catalog().unwrap();
        let packs: Vec<PackName> = catalog.packs.values().filter(condemned).map(|p| p.record.name).collect();
        self.append(vec![Op::SweepPacks { packs }]);
        region.remove_swept::<RegionError>(self.caller.account, || Ok(())).unwrap();
    }
}

#[test]
fn a_pack_is_condemned_only_if_the_mark_holds_at_the_tail() {
    let schedule = |by_the_rules: bool| {
        let stage = Stage::new();
        let bytes = stage.garbage();
        let collector = stage.open();
        let mark = collector.mark::<RegionError>(&HashSet::new(), || Ok(())).unwrap();
        let kept = mark.kept_packs();
        let dead: Vec<PackName> =
            mark.catalog.packs.keys().filter(|pack| !kept.contains(pack)).copied().collect();
        assert!(!dead.is_empty());
        // Between mark and record somebody uses what was garbage.
        let id = stage.snapshot(&bytes);
        if by_the_rules {
            assert!(!collector.condemn(&mark, &kept, &dead, stage.caller.account, 1).unwrap());
        } else {
            stage.append(vec![Op::CondemnPacks { packs: dead, at_ms: 1 }]);
        }
        stage.sweep();
        stage.is_whole(id, &bytes)
    };
    assert!(schedule(true));
    assert!(!schedule(false), "the rule does nothing");
}

const AGAINST_A_COPY: &str = "something stored against a copy of what was to go";

/// A mark is made to hold for what came after it, if that needs nothing of what goes: neither by itself, nor the copy there of what
/// it has elsewhere, nor what another collector lets go of meanwhile.
#[test]
fn a_mark_is_made_to_hold_for_what_needs_nothing_of_what_goes() {
    let account = Stage::new().caller.account;
    // What comes after the mark; whether it can be made to hold.
    type After = fn(&Stage, [&Ingested; 2]) -> SnapshotId;
    let cases: [(&str, After, bool); 5] = [
        ("something new", |stage, _| stage.snapshot(&volume(50_000, 9)), true),
        ("nothing new in it", |stage, _| stage.snapshot(&volume(30_000, 7)), true),
        ("what was to go", |stage, _| stage.snapshot(&volume(120_000, 1)), false),
        (
            "a copy of what was to go",
            |stage, [_, second]| stage.commit(&stage.open(), second, &second.packs).unwrap(),
            false,
        ),
        (AGAINST_A_COPY, |stage, _| stage.snapshot(&common::changed(&volume(200_000, 2), 50_000)), false),
    ];
    for (what, come, is_made) in cases {
        for is_raced in [false, true] {
            let stage = Stage::new();
            stage.snapshot(&volume(60_000, 7));
            stage.garbage();
            let (one, other) = (stage.open(), stage.open());
            let mut sessions = [&one, &other].map(|region| region.begin(account).unwrap());
            let [first, second] =
                sessions.each_mut().map(|session| stage.ingest(session, &volume(200_000, 2)));
            let collector = stage.open();
            let mut mark = collector.mark::<RegionError>(&HashSet::new(), || Ok(())).unwrap();
            let mut kept = mark.kept_packs();
            let stays = |pack: &PackName| kept.contains(pack) || second.packs.contains(pack);
            let dead: Vec<PackName> =
                mark.catalog.packs.keys().filter(|pack| !stays(pack)).copied().collect();
            assert!(first.packs.iter().all(|pack| dead.contains(pack)) && dead.len() > first.packs.len());
            let going: HashSet<PackName> = dead.iter().copied().collect();
            let before: HashSet<PackName> = stage.open().catalog().unwrap().packs.keys().copied().collect();
            let id = come(&stage, [&first, &second]);
            assert!(
                !collector.condemn(&mark, &kept, &dead, account, 1).unwrap(),
                "{what}: it holds by itself"
            );
            let made = collector.catch_up::<RegionError>(&mut mark, &mut kept, &going, || Ok(())).unwrap();
            assert_eq!(made, is_made, "{what}");
            let new: Vec<PackName> = stage
                .open()
                .catalog()
                .unwrap()
                .packs
                .keys()
                .filter(|pack| !before.contains(pack))
                .copied()
                .collect();
            let catalog = stage.open().catalog().unwrap();
            let has_bases = new.iter().any(|pack| !catalog.packs[pack].record.bases.is_empty());
            assert!(has_bases || what != AGAINST_A_COPY, "{what}");
            let is_raced = is_raced && !new.is_empty();
            if is_raced {
                stage.append(vec![Op::CondemnPacks { packs: new, at_ms: 1 }]);
            }
            let condemned = collector.condemn(&mark, &kept, &dead, account, 1).unwrap();
            assert_eq!(condemned, is_made && !is_raced, "{what}");
            if !is_raced {
                let bytes = stage.caller.read_back(&stage.open(), id).unwrap();
                stage.sweep();
                assert!(stage.is_whole(id, &bytes), "{what}");
            }
        }
    }
}

#[test]
fn of_two_collectors_that_keep_other_copies_one_marks_again() {
    let schedule = |by_the_rules: bool| {
        let stage = Stage::new();
        let bytes = volume(60_000, 2);
        // Each stores all of it, before it sees the other's.
        let (one, other) = (stage.open(), stage.open());
        let mut sessions = [&one, &other].map(|region| region.begin(stage.caller.account).unwrap());
        let [first, second] = sessions.each_mut().map(|session| stage.ingest(session, &bytes));
        let id = stage.commit(&one, &first, &first.packs).unwrap();
        let collectors = [stage.open(), stage.open()];
        let marks = collectors
            .each_ref()
            .map(|region| region.mark::<RegionError>(&HashSet::new(), || Ok(())).unwrap());
        let account = stage.caller.account;
        // The first lets go of one copy. The second, for whatever reason, keeps that one and lets go of the other.
        let kept = marks[0].kept_packs();
        let (used, unused) = if first.packs.iter().all(|pack| kept.contains(pack)) {
            (first.packs, second.packs)
        } else {
            (second.packs, first.packs)
        };
        assert!(collectors[0].condemn(&marks[0], &kept, &unused, account, 1).unwrap());
        let keeps_other = unused.iter().copied().collect();
        if by_the_rules {
            assert!(!collectors[1].condemn(&marks[1], &keeps_other, &used, account, 1).unwrap());
        } else {
            stage.append(vec![Op::CondemnPacks { packs: used, at_ms: 1 }]);
        }
        stage.sweep();
        stage.is_whole(id, &bytes)
    };
    assert!(schedule(true));
    assert!(!schedule(false), "the rule does nothing");
}

#[test]
fn bytes_go_only_after_the_record_that_says_so() {
    let schedule = |by_the_rules: bool| {
        let stage = Stage::new();
        let bytes = stage.garbage();
        let writer = stage.open();
        let mut session = writer.begin(stage.caller.account).unwrap();
        let ingested = stage.ingest(&mut session, &bytes);
        assert_eq!(ingested.new_chunks, 0, "it counts on what is there");
        let packs = ingested.packs.clone();
        stage.append(vec![Op::CondemnPacks { packs: packs.clone(), at_ms: 1 }]);
        if by_the_rules {
            stage.sweep();
        } else {
            packs.iter().for_each(|pack| stage.storage.delete(&pack.to_string()).unwrap());
        }
        match stage.commit(&writer, &ingested, &packs) {
            Ok(id) => stage.is_whole(id, &bytes),
            Err(error) => matches!(error, OpsError::ContentGone { .. }),
        }
    };
    assert!(schedule(true));
    assert!(!schedule(false), "the rule does nothing");
}

#[test]
fn a_commit_names_the_packs_that_it_counts_on() {
    let schedule = |by_the_rules: bool| {
        let stage = Stage::new();
        let bytes = stage.garbage();
        let writer = stage.open();
        let mut session = writer.begin(stage.caller.account).unwrap();
        let ingested = stage.ingest(&mut session, &bytes);
        let packs = ingested.packs.clone();
        stage.append(vec![Op::CondemnPacks { packs: packs.clone(), at_ms: 1 }]);
        let named = if by_the_rules { packs } else { vec![] };
        let id = stage.commit(&writer, &ingested, &named).unwrap();
        // Named, they were rescued.
        stage.sweep();
        stage.is_whole(id, &bytes)
    };
    assert!(schedule(true));
    assert!(!schedule(false), "the rule does nothing");
}

/// A record does not name packs that are live in the state that it follows. In an earlier state they say nothing.
#[test]
fn what_a_commit_counts_on_is_judged_on_the_state_that_it_follows() {
    let schedule = |by_the_rules: bool, is_swept: bool| {
        let stage = Stage::new();
        let bytes = stage.garbage();
        let like = stage.like();
        let writer = stage.open();
        let mut session = writer.begin(stage.caller.account).unwrap();
        let ingested = stage.ingest(&mut session, &bytes);
        assert_eq!(ingested.new_chunks, 0, "it counts on what is there");
        let id = SnapshotId::from_random(writer.random_id().unwrap());
        let (mut judged, mut is_alone) = (Vec::new(), true);
        let made = writer.commit::<_, OpsError>(stage.caller.account, |catalog| {
            if by_the_rules || judged.is_empty() {
                judged.push(catalog.packs_to_name(&ingested.packs).map_err(RegionError::Rejected)?);
            }
            if std::mem::take(&mut is_alone) {
                // Before the record is there, another one is.
                stage.append(vec![Op::CondemnPacks { packs: ingested.packs.clone(), at_ms: 1 }]);
                is_swept.then(|| stage.sweep());
            }
            let (manifest, volume_bytes) = (ingested.manifest.clone(), ingested.volume_bytes);
            let snapshot = Box::new(Snapshot { id, manifest, volume_bytes, ..like.clone() });
            let packs = judged.last().unwrap().clone();
            Ok((vec![Op::CreateSnapshot { snapshot, packs }], ()))
        });
        assert_eq!(judged[0], [], "they were all live");
        if let Some(packs) = judged.get(1) {
            assert_eq!(*packs, ingested.packs, "they are condemned now");
        }
        stage.sweep();
        match made {
            Ok(()) => stage.is_whole(id, &bytes),
            Err(error) => is_swept && matches!(error, OpsError::ContentGone { .. }),
        }
    };
    for is_swept in [false, true] {
        assert!(schedule(true, is_swept));
        assert!(!schedule(false, is_swept), "the rule does nothing");
    }
}

#[test]
fn a_session_is_fenced_before_what_it_left_is_removed() {
    let schedule = |by_the_rules: bool| {
        let stage = Stage::new();
        let bytes = volume(50_000, 3);
        let writer = stage.open();
        let mut session = writer.begin(stage.caller.account).unwrap();
        let ingested = stage.ingest(&mut session, &bytes);
        // It is slow, and taken for gone.
        stage.storage.take_all_for_gone(true);
        let collector = stage.open();
        let orphans = collector.find_orphans().unwrap();
        assert!(!orphans.objects.is_empty(), "its manifest");
        if by_the_rules {
            collector.remove_orphans(&orphans, stage.caller.account).unwrap();
        } else {
            orphans.objects.iter().for_each(|object| stage.storage.delete(&object.name).unwrap());
        }
        match stage.commit(&writer, &ingested, &ingested.packs) {
            Ok(id) => stage.is_whole(id, &bytes),
            Err(error) => error.to_string().contains("fenced"),
        }
    };
    assert!(schedule(true));
    assert!(!schedule(false), "the rule does nothing");
}

#[test]
fn a_block_map_that_nothing_names_any_more_is_not_named_again() {
    let schedule = |by_the_rules: bool| {
        let stage = Stage::new();
        let bytes = volume(70_000, 4);
        let first = stage.snapshot(&bytes);
        let writer = stage.open();
        let mut session = writer.begin(stage.caller.account).unwrap();
        let ingested = stage.ingest(&mut session, &bytes);
        // The block map is the first snapshot's, which goes, and is collected.
        delete_snapshot(&stage.open(), first, &stage.caller.context()).unwrap();
        let orphans = {
            stage.storage.take_all_for_gone(true);
            let orphans = stage.open().find_orphans().unwrap();
            stage.storage.take_all_for_gone(false);
            orphans
        };
        let manifest = ingested.manifest.name.to_string();
        assert!(orphans.objects.iter().any(|object| object.name == manifest));
        stage.storage.delete(&manifest).unwrap();
        let is_lost = session.lost_manifest(&writer.catalog().unwrap()).is_some();
        if by_the_rules && is_lost {
            return true;
        }
        let id = stage.commit(&writer, &ingested, &ingested.packs).unwrap();
        stage.is_whole(id, &bytes)
    };
    assert!(schedule(true));
    assert!(!schedule(false), "the rule does nothing");
}

/// What a chunk that is nowhere does to a collection: nothing is condemned, since an index that lies looks the same.
#[test]
fn nothing_is_condemned_as_long_as_a_chunk_is_nowhere() {
    let stage = Stage::new();
    let bytes = volume(90_000, 5);
    let id = stage.snapshot(&bytes);
    stage.garbage();
    let packs = stage.open().catalog().unwrap().packs.len();
    let manifest = stage.open().catalog().unwrap().snapshots[&id].manifest.clone();
    let map = stage.open().load_map(&manifest).unwrap();
    let place = stage.open().locate(&[map.chunks()[0].id]).unwrap()[0].1.pack;
    stage.append(vec![
        Op::CondemnPacks { packs: vec![place], at_ms: 1 },
        Op::SweepPacks { packs: vec![place] },
    ]);
    let error = collect(&stage.open(), &NOW, &stage.caller.context()).unwrap_err();
    assert!(error.to_string().contains("in no pack"), "{error}");
    // What was on record as swept is gone, as it says; nothing else is.
    assert_eq!(stage.open().catalog().unwrap().packs.len(), packs - 1);
}
