//! What is lock-free in the program, in every interleaving that the memory model allows (loom).

mod atomic {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
}

/// The program's own source, over loom's atomics.
#[path = "../src/pack/checked.rs"]
mod checked;

use checked::Checked;
use loom::sync::Arc;
use loom::thread;

/// Two readers and a third mark pages of one word and of another: afterwards each page that was marked is, and at no time
/// one that nobody marked.
#[test]
fn no_mark_of_a_checked_page_is_lost_or_made_up() {
    loom::model(|| {
        let checked = Arc::new(Checked::none_of(70));
        let marking = |pages: &'static [u32]| {
            let checked = checked.clone();
            thread::spawn(move || {
                for &page in pages {
                    // As the index does: look, check the page, mark it.
                    if !checked.has(page) {
                        checked.set(page);
                    }
                    assert!(checked.has(page), "a thread sees its own mark");
                    assert!(!checked.has(5), "page 5 was never checked");
                }
            })
        };
        let threads = [marking(&[3, 69]), marking(&[3, 4])];
        assert!(!checked.has(5) && !checked.has(68));
        for thread in threads {
            thread.join().unwrap();
        }
        for page in 0..70 {
            assert_eq!(checked.has(page), [3, 4, 69].contains(&page), "page {page}");
        }
        // Beyond the end nothing is known, and marking it is no harm.
        checked.set(1000);
        assert!(!checked.has(1000));
    });
}

/// The same with a store in the place of the atomic "or", which loses marks: loom must see it.
#[test]
#[should_panic(expected = "a mark is lost")]
fn a_store_in_the_place_of_an_or_is_caught() {
    use atomic::{AtomicU64, Ordering};
    loom::model(|| {
        let word = Arc::new(AtomicU64::new(0));
        let marking = |bit: u64| {
            let word = word.clone();
            thread::spawn(move || word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed))
        };
        let threads = [marking(1), marking(2)];
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(word.load(Ordering::Relaxed), 3, "a mark is lost");
    });
}
