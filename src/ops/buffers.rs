//! Buffers that go round in a pipeline: their number bounds its memory. The one that came back last goes out first: as many
//! as are needed stay in the processor's cache, and the others are never made.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::{Arc, Mutex, PoisonError};

/// Where buffers come from. Several threads may take.
pub(super) struct Take<T> {
    /// One token for each buffer that may be taken.
    tokens: Receiver<()>,
    waiting: Waiting<T>,
}

/// Where they go back to. When it is gone, no more are given out.
pub(super) struct GiveBack<T> {
    tokens: Sender<()>,
    waiting: Waiting<T>,
}

type Waiting<T> = Arc<Mutex<Vec<T>>>;

/// So many buffers, made when they are first taken.
pub(super) fn buffers<T>(count: usize) -> (GiveBack<T>, Take<T>) {
    let (tokens_in, tokens) = bounded(count);
    for _ in 0..count {
        let _ = tokens_in.send(());
    }
    let waiting = Waiting::default();
    (GiveBack { tokens: tokens_in, waiting: waiting.clone() }, Take { tokens, waiting })
}

impl<T> Clone for Take<T> {
    fn clone(&self) -> Self {
        Self { tokens: self.tokens.clone(), waiting: self.waiting.clone() }
    }
}

impl<T: Default> Take<T> {
    /// Waits for a buffer; none if nobody gives any back any more.
    pub(super) fn take(&self) -> Option<T> {
        self.tokens.recv().ok()?;
        Some(self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default())
    }
}

impl<T> GiveBack<T> {
    /// For whoever takes next. Nobody does any more when the pipeline's first stage is through.
    pub(super) fn give_back(&self, buffer: T) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        // Full if this one was not taken here: there are as many as there may be.
        let _ = self.tokens.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_came_back_goes_out_first_and_no_more_than_there_are() {
        let (back, take) = buffers::<Vec<u8>>(2);
        let (one, two) = (take.take().unwrap(), take.take().unwrap());
        assert!(take.tokens.is_empty() && one.is_empty() && two.is_empty());
        back.give_back(vec![1]);
        back.give_back(vec![2]);
        assert_eq!((take.take(), take.take()), (Some(vec![2]), Some(vec![1])));
        drop(back);
        assert_eq!(take.take(), None);
    }
}
