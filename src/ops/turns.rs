//! Cutting, the one thing that pieces of a disk must do one after the other, while several threads work on them.
//!
//! A piece that holds what was expected is hashed before it is cut: whoever brings it leaves it here and goes on; it passes
//! when its turn comes. With another the thread waits for its turn, and hashes afterwards, while the piece is in the cache.

use super::buffers::Take;
use super::cutting::{Batch, Cutting, Unhashed};
use super::expected::{Expected, Same};
use super::pieces::{Loaded, Piece};
use crate::disk::AlignedBuffer;
use crate::model::region::ChunkerParams;
use crossbeam_channel::Sender;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// What was found in a piece before it is cut.
pub(super) enum Found {
    /// What was expected, and is stored.
    Same(Loaded, Same),
    /// Something else.
    Other(Piece),
    /// The disk's end, which ends what is open.
    End,
}

/// Chunks to be hashed, and who waits for them.
pub(super) type ToHash = (Unhashed, Sender<Batch>);

/// Whose turn it is.
pub(super) struct Turns<'a> {
    params: ChunkerParams,
    expected: Option<&'a Expected>,
    /// Pieces that pass and are handed on together: who waits for them need not be woken for each.
    at_once: usize,
    state: Mutex<State>,
    moved_on: Condvar,
}

struct State {
    /// The number of the piece that is cut next.
    turn: u64,
    /// As the piece before leaves it.
    cutting: Cutting,
    /// Pieces that were left here, by their numbers.
    left: BTreeMap<u64, Left>,
    /// What is to be handed on, with who waits for it.
    passed: Vec<(Sender<Batch>, Batch)>,
    /// A piece will not come.
    is_broken: bool,
}

struct Left {
    piece: Loaded,
    same: Same,
    batch: Sender<Batch>,
    by: ThreadId,
}

impl State {
    /// The piece whose turn it is, if it was left.
    fn take_left(&mut self) -> Option<Left> {
        self.left.remove(&self.turn)
    }
}

impl<'a> Turns<'a> {
    /// As many pieces as are handed on `at_once` must be under way at least, and one more.
    pub(super) fn new(params: ChunkerParams, expected: Option<&'a Expected>, at_once: usize) -> Self {
        let cutting = Cutting::at_start(params);
        let state = State { turn: 0, cutting, left: BTreeMap::new(), passed: Vec::new(), is_broken: false };
        Self { params, expected, at_once, state: Mutex::new(state), moved_on: Condvar::new() }
    }

    /// Cuts a piece, if it is one that has to wait for its turn, and those that were left and follow; buffers of those that
    /// pass go back. What was cut is for the caller to hash and to send. None if a piece before will not come: whoever gave
    /// it up has the reason.
    pub(super) fn settle(
        &self,
        number: u64,
        found: Found,
        batch: Sender<Batch>,
        buffers: &Take<AlignedBuffer>,
    ) -> Option<Vec<ToHash>> {
        let mut state = self.lock()?;
        let mut to_hash = Vec::new();
        match found {
            Found::Same(piece, same) => {
                state.left.insert(number, Left { piece, same, batch, by: thread::current().id() });
            }
            Found::Other(piece) => {
                state = self.wait(state, number)?;
                to_hash.push((self.cut(&mut state, piece), batch));
            }
            Found::End => {
                state = self.wait(state, number)?;
                let cutting = std::mem::replace(&mut state.cutting, Cutting::at_start(self.params));
                to_hash.push((cutting.finish(), batch));
                state.turn += 1;
            }
        }
        // What is taken out here has its turn until that is over: nobody else goes on.
        while let Some(Left { piece, same, batch, by }) = state.take_left() {
            if state.cutting.is_as_expected {
                let passed = state.cutting.pass(piece.read_bytes(), same);
                state.passed.push((batch, passed));
                state.turn += 1;
                buffers.put_back(piece.into_buffer(), by);
                continue;
            }
            // That takes as long as reading it: not while others wait for the lock.
            drop(state);
            let piece = piece.described(self.params);
            state = self.lock()?;
            to_hash.push((self.cut(&mut state, piece), batch));
        }
        // What is cut is waited for with the buffer that it is in.
        let is_time = !to_hash.is_empty() || state.passed.len() >= self.at_once;
        let passed = if is_time { std::mem::take(&mut state.passed) } else { Vec::new() };
        drop(state);
        self.moved_on.notify_all();
        // The first is waited for: who is woken by it finds the others there, too. Nobody may want them any more; who
        // went has the reason.
        passed.into_iter().rev().for_each(|(batch, passed)| drop(batch.send(passed)));
        Some(to_hash)
    }

    /// Nobody need wait any more: a piece will not come.
    pub(super) fn give_up(&self) {
        // Whoever panicked with the lock has left nothing that is used any more.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_broken = true;
        // Who waits for these sees that nothing comes, and ends; that ends who waits for room behind them.
        let passed = std::mem::take(&mut state.passed);
        drop(state);
        drop(passed);
        self.moved_on.notify_all();
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, number: u64) -> Option<MutexGuard<'s, State>> {
        let is_waiting = |state: &mut State| !state.is_broken && state.turn != number;
        self.moved_on.wait_while(state, is_waiting).ok().filter(|state| !state.is_broken)
    }

    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.lock().ok().filter(|state| !state.is_broken)
    }

    /// Cuts the piece whose turn it is, and ends that.
    fn cut(&self, state: &mut State, piece: Piece) -> Unhashed {
        let unhashed = state.cutting.take(piece);
        let is_met = |expected: &Expected| expected.is_met(&state.cutting.cutter, unhashed.last());
        state.cutting.is_as_expected = self.expected.is_some_and(is_met);
        state.turn += 1;
        unhashed
    }
}
