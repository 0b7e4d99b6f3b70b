//! The catalogue's answers that operations go by before they are tried.

use imgstore::model::account::AccountId;
use imgstore::model::catalog::{Catalog, Pack};
use imgstore::model::ids::{ObjectHash, SessionId};
use imgstore::model::objects::{PackName, PackRecord, PackState};
use imgstore::model::op::{Author, LogRecord, Op};
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
    for number in 1..=13 {
        let record = LogRecord {
            sequence: 1,
            previous: ObjectHash([0; 32]),
            nonce: [0; 16],
            time_ms: 0,
            author: Author { account: AccountId::from_random(1), session: SESSION },
            ops: vec![Op::RegisterPack(pack(50, &[number]))],
        };
        let is_taken = catalog.clone().apply(&record).is_ok();
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
