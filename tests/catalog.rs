//! The catalogue's answers that operations go by before they are tried.

mod common;

use common::{Rules, volume};
use imgstore::model::account::AccountId;
use imgstore::model::catalog::{Catalog, Pack};
use imgstore::model::ids::{ObjectHash, SessionId};
use imgstore::model::objects::{PackName, PackRecord, PackState};
use imgstore::model::op::{Author, BinStay, LogRecord, Op};
use std::sync::Arc;

const SESSION: SessionId = SessionId([1; 16]);

fn name(number: u64) -> PackName {
    PackName { session: SESSION, number }
}

fn pack(number: u64, bases: &[u64]) -> PackRecord {
    let bases = bases.iter().copied().map(name).collect();
    let trailer_hash = ObjectHash([0; 32]);
    PackRecord { name: name(number), len: 1, frames: 1, raw_bytes: 4096, trailer_hash, bases }
}

/// Packs in these states, based on others.
fn catalog(packs: &[(u64, PackState, &[u64])]) -> Catalog {
    let mut catalog = Catalog::default();
    let table = Arc::make_mut(&mut catalog.packs);
    for &(number, state, bases) in packs {
        table.insert(name(number), Pack { record: pack(number, bases), state });
    }
    catalog
}

/// The catalogue after a record of these operations, if it takes them.
fn applied(catalog: &Catalog, ops: Vec<Op>) -> Option<Catalog> {
    let record = LogRecord {
        sequence: catalog.sequence + 1,
        previous: ObjectHash([0; 32]),
        nonce: [0; 16],
        time_ms: 0,
        author: Author { account: AccountId::from_random(1), session: SESSION },
        ops,
    };
    let mut after = catalog.clone();
    after.apply(&record).is_ok().then_some(after)
}

/// What a long line of deleted images leaves: thousands of condemned packs, each on many before it, on one that is damaged.
#[test]
fn many_condemned_packs_are_judged_at_once() {
    let damaged = PackState::Quarantined { since_ms: 5 };
    let before = |number: u64| (number.saturating_sub(60)..number).collect::<Vec<u64>>();
    let bases: Vec<Vec<u64>> = (1..4000).map(before).collect();
    let mut packs: Vec<(u64, PackState, &[u64])> = vec![(0, damaged, &[]), (5000, PackState::Live, &[])];
    packs.extend(
        (1..4000).zip(&bases).map(|(number, on)| (number, PackState::Condemned { since_ms: 5 }, &on[..])),
    );
    packs.push((5001, PackState::Condemned { since_ms: 5 }, &[5000]));
    let catalog = catalog(&packs);
    let started = std::time::Instant::now();
    let unusable = catalog.unusable_condemned();
    assert_eq!(unusable.len(), 3999, "all but one are on the damaged one");
    // One at a time it takes minutes.
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn a_pack_can_be_used_if_a_new_one_may_be_based_on_it() {
    let (condemned, damaged) = (PackState::Condemned { since_ms: 5 }, PackState::Quarantined { since_ms: 5 });
    let catalog = catalog(&[
        (1, PackState::Live, &[]),
        (2, condemned, &[]),
        (3, PackState::Sweeping, &[]),
        (4, damaged, &[]),
        // Condemned, and on others: a use has to rescue these, too.
        (5, condemned, &[1]),
        (6, condemned, &[2]),
        (7, condemned, &[3]),
        (8, condemned, &[4]),
        (9, condemned, &[6, 7]),
        (10, condemned, &[99]),
        // On each other.
        (11, condemned, &[12]),
        (12, condemned, &[11]),
    ]);
    let usable: Vec<u64> = (1..=13).filter(|number| catalog.can_be_used(name(*number))).collect();
    assert_eq!(usable, [1, 2, 5, 6, 11, 12]);
    let unusable = catalog.unusable_condemned();
    let at_once: Vec<u64> = (1..=13).filter(|number| catalog.is_usable(name(*number), &unusable)).collect();
    assert_eq!(at_once, usable);
    for number in 1..=13 {
        let is_taken = applied(&catalog, vec![Op::RegisterPack(pack(50, &[number]))]).is_some();
        assert_eq!(is_taken, usable.contains(&number), "a pack that is based on pack {number}");
    }
}

#[test]
fn packs_with_all_that_they_are_based_on() {
    let live = PackState::Live;
    let catalog =
        catalog(&[(1, live, &[]), (2, live, &[1]), (3, live, &[2, 9]), (4, live, &[]), (5, live, &[5])]);
    let with_bases = |packs: &[u64]| -> Vec<u64> {
        catalog.with_bases(packs.iter().copied().map(name)).into_iter().map(|pack| pack.number).collect()
    };
    assert_eq!(with_bases(&[]), [0; 0]);
    assert_eq!(with_bases(&[3]), [1, 2, 3, 9], "one that is not there is named all the same");
    assert_eq!(with_bases(&[4, 2]), [1, 2, 4]);
    assert_eq!(with_bases(&[5]), [5]);
}

/// What is kept beside the tables is what is found by going through them, as it is after a checkpoint was read.
#[test]
fn a_catalogue_that_was_decoded_is_the_one_that_was_encoded() {
    let rules = Rules::new();
    let images = [rules.image("web"), rules.template("store"), rules.import("data", &[volume(20_000, 8)])];
    images.iter().for_each(|image| drop(rules.launch(image.id, &rules.owner).unwrap()));
    imgstore::ops::bin::add_rule(
        &rules.region,
        imgstore::model::account::Resource::Image,
        7,
        &[],
        &rules.owner.context(),
    )
    .unwrap();
    imgstore::ops::delete::deregister(&rules.region, images[2].id, false, &rules.owner.context()).unwrap();
    let catalog = rules.catalog();
    assert!(!catalog.binned_images.is_empty() && !catalog.volumes.is_empty());
    assert_eq!(catalog.clone().with_derived(), catalog);
}

/// An id is not given again as long as anything is known of the snapshot that has it.
#[test]
fn no_snapshot_is_made_under_the_id_of_one_that_can_come_back_or_is_under_a_volume() {
    let rules = Rules::new();
    let id = rules.image("web").snapshot_ids().next().unwrap();
    let mut catalog = rules.catalog();
    let snapshot = catalog.snapshots[&id].clone();
    Arc::make_mut(&mut catalog.snapshots).clear();
    Arc::make_mut(&mut catalog.images).clear();
    let catalog = catalog.with_derived();
    let create = || Op::CreateSnapshot { snapshot: Box::new(snapshot.clone()), packs: vec![] };
    let there = applied(&catalog, vec![create()]).unwrap();
    assert!(applied(&there, vec![create()]).is_none());
    let bin = Some(BinStay { since_ms: 0, until_ms: 1 });
    let binned = applied(&there, vec![Op::DeleteSnapshot { id, bin }]).unwrap();
    assert!(binned.binned_snapshots.contains_key(&id) && applied(&binned, vec![create()]).is_none());
    let mut retained = catalog;
    Arc::make_mut(&mut retained.retained_snapshots).insert(id, snapshot.clone());
    assert!(applied(&retained, vec![create()]).is_none());
}
