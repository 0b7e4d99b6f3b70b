//! Buffers that go round in a pipeline: their number bounds its memory. A thread gets its own back if it can, else the one that
//! came back last: as few as are needed stay in the processor's cache, and the others are never made.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// Where buffers come from. Several threads may take.
pub(super) struct Take<T>(Arc<Shared<T>>);

/// Where they go back to at the pipeline's end. When it is gone, no more are given out.
pub(super) struct GiveBack<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    came_back: Condvar,
}

struct State<T> {
    /// With who gave them back.
    waiting: Vec<(ThreadId, T)>,
    /// How many more may be made.
    unmade: usize,
    is_over: bool,
}

/// So many buffers, made when they are first taken.
pub(super) fn buffers<T>(count: usize) -> (GiveBack<T>, Take<T>) {
    let state = State { waiting: Vec::new(), unmade: count, is_over: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), came_back: Condvar::new() });
    (GiveBack(shared.clone()), Take(shared))
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, buffer: T, by: ThreadId) {
        self.state().waiting.push((by, buffer));
        self.came_back.notify_one();
    }

    fn end(&self) {
        self.state().is_over = true;
        self.came_back.notify_all();
    }
}

impl<T> Clone for Take<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Default> Take<T> {
    /// Waits for a buffer; none if no more are given out.
    pub(super) fn take(&self) -> Option<T> {
        let is_waiting =
            |state: &mut State<T>| !state.is_over && state.waiting.is_empty() && state.unmade == 0;
        let mut state =
            self.0.came_back.wait_while(self.0.state(), is_waiting).unwrap_or_else(PoisonError::into_inner);
        if state.is_over {
            return None;
        }
        let own = thread::current().id();
        if let Some(at) = state.waiting.iter().rposition(|(by, _)| *by == own) {
            return Some(state.waiting.remove(at).1);
        }
        if let Some((_, buffer)) = state.waiting.pop() {
            return Some(buffer);
        }
        state.unmade -= 1;
        Some(T::default())
    }
}

impl<T> Take<T> {
    /// Gives one back that is not needed any more, for the thread that had it.
    pub(super) fn put_back(&self, buffer: T, by: ThreadId) {
        self.0.give_back(buffer, by);
    }

    /// No more are given out: who waits must not wait for what will not come.
    pub(super) fn end(&self) {
        self.0.end();
    }
}

impl<T> GiveBack<T> {
    /// For whoever takes next.
    pub(super) fn give_back(&self, buffer: T) {
        self.0.give_back(buffer, thread::current().id());
    }
}

impl<T> Drop for GiveBack<T> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_ones_then_the_last_that_came_back_and_no_more_than_there_are() {
        let (back, take) = buffers::<Vec<u8>>(2);
        let (one, two) = (take.take().unwrap(), take.take().unwrap());
        assert!(take.0.state().unmade == 0 && one.is_empty() && two.is_empty());
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        take.put_back(vec![1], other);
        take.put_back(vec![2], other);
        assert_eq!((take.take(), take.take()), (Some(vec![2]), Some(vec![1])));
        back.give_back(vec![3]);
        take.put_back(vec![4], other);
        assert_eq!((take.take(), take.take()), (Some(vec![3]), Some(vec![4])));
        back.give_back(vec![5]);
        drop(back);
        assert_eq!(take.take(), None);
    }

    #[test]
    fn who_waits_is_told_of_one_that_is_put_back_and_of_the_end() {
        let (_back, take) = buffers::<Vec<u8>>(1);
        let buffer = take.take().unwrap();
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| take.take())).collect();
            take.put_back(buffer, thread::current().id());
            while waiting.iter().filter(|thread| thread.is_finished()).count() == 0 {
                thread::yield_now();
            }
            take.end();
            let got = waiting.into_iter().filter_map(|thread| thread.join().unwrap()).count();
            assert_eq!(got, 1);
        });
    }
}
