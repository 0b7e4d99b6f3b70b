//! A scheduler for processes that share a simulated disk: whoever wants to take a step on the storage waits until it is
//! drawn. Between two steps of one process any number of steps of the others may lie, as many as a process that sleeps, or
//! an answer that is late, would let pass.
//!
//! A step is a read, a change of the disk, or the return of a call. Whose turn it is, is drawn once every process that
//! runs waits for a step; one that computes for long is not waited for. So a seed gives nearly the same schedule each
//! time: threads of one process are not told apart.

use crate::common::{Draw, pass_on};
use imgstore::io::sim::{Hook, SimFiles, SimOp, Verdict};
use imgstore::io::storage::{Created, Fill, Listed, Object, Storage, StorageError};
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something gets its name.
    Name,
    /// Anything else that is done.
    Act,
    /// A call returns. It cannot fail any more.
    Return,
}

/// How long a process that computes is waited for.
const PATIENCE: Duration = Duration::from_millis(3);

/// What befalls a process, after so many steps of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Lives,
    /// It is killed.
    Killed(usize),
    /// The next name is given, but the answer is an error.
    AnswerLost(usize),
    /// The next step fails.
    StepFails(usize, ErrorKind),
}

struct Process {
    fate: Fate,
    /// Its threads that wait for a step.
    waiting: usize,
    has_ended: bool,
    is_dead: bool,
    /// Whether anything of its fate has come.
    is_hit: bool,
    steps: usize,
    /// It gets no turn before so many steps of all, unless nobody else does.
    asleep_until: usize,
}

struct State {
    draw: Draw,
    processes: Vec<Process>,
    /// Who may take steps.
    chosen: usize,
    /// How many are left to it.
    left: usize,
    steps: usize,
    /// After so many steps power fails.
    off_at: usize,
    /// Calls out of so many in which a living writer is taken for gone; 0 for none.
    mistaken_in: usize,
}

/// Whose turn it is. Clones share it.
#[derive(Clone)]
pub struct Turns(Arc<(Mutex<State>, Condvar)>);

impl Turns {
    /// For processes with these fates; power fails after so many steps.
    pub fn new(seed: u64, fates: &[Fate], off_at: usize, mistaken_in: usize) -> Self {
        let process = |fate: &Fate| Process {
            fate: *fate,
            waiting: 0,
            has_ended: false,
            is_dead: false,
            is_hit: false,
            steps: 0,
            asleep_until: 0,
        };
        let processes = fates.iter().map(process).collect();
        let state =
            State { draw: Draw::new(seed), processes, chosen: 0, left: 0, steps: 0, off_at, mistaken_in };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// A process ends when this is dropped; nobody waits for it any more.
    pub fn process(&self, number: usize) -> Running {
        Running { turns: self.clone(), number }
    }

    /// Steps that were taken.
    pub fn steps(&self) -> usize {
        self.state().steps
    }

    /// Waits for a turn, and says what becomes of the step.
    fn step(&self, number: usize, step: Step) -> Verdict {
        let mut state = self.state();
        state.processes[number].waiting += 1;
        loop {
            if state.left > 0 && state.chosen == number {
                break;
            }
            if state.left == 0 && state.all_wait() {
                state.choose();
                self.0.1.notify_all();
                continue;
            }
            let seen = state.steps;
            let (guard, waited) = self.0.1.wait_timeout(state, PATIENCE).unwrap();
            state = guard;
            if waited.timed_out() && state.steps == seen {
                state.choose();
                self.0.1.notify_all();
            }
        }
        state.processes[number].waiting -= 1;
        state.left -= 1;
        state.steps += 1;
        let verdict = state.verdict(number, step);
        drop(state);
        self.0.1.notify_all();
        verdict
    }
}

impl State {
    fn all_wait(&self) -> bool {
        self.processes.iter().all(|process| process.has_ended || process.waiting > 0)
    }

    /// Draws who goes on, of those who wait, and for how many steps.
    fn choose(&mut self) {
        let waits = |process: &&Process| !process.has_ended && process.waiting > 0;
        let is_awake = |process: &Process| process.asleep_until <= self.steps;
        let someone_is = self.processes.iter().filter(waits).any(is_awake);
        let candidates: Vec<usize> = (0..self.processes.len())
            .filter(|at| waits(&&self.processes[*at]))
            .filter(|at| !someone_is || is_awake(&self.processes[*at]))
            .collect();
        let Some(chosen) = candidates.get(self.draw.below(candidates.len())).copied() else { return };
        if candidates.len() > 1 && self.draw.below(40) == 0 {
            let most = [30, 300, 3000][self.draw.below(3)];
            self.processes[chosen].asleep_until = self.steps + self.draw.below(most);
            return self.choose();
        }
        let most = [3, 3, 30, 30, 1000][self.draw.below(5)];
        self.chosen = chosen;
        self.left = 1 + self.draw.below(most);
    }

    fn verdict(&mut self, number: usize, step: Step) -> Verdict {
        const OFF: Verdict = Verdict::Fail(ErrorKind::Other);
        let is_off = self.steps > self.off_at;
        let process = &mut self.processes[number];
        if step == Step::Return {
            return Verdict::Proceed;
        }
        process.steps += 1;
        if is_off || process.is_dead {
            process.is_hit = true;
            return OFF;
        }
        let verdict = match process.fate {
            Fate::Killed(after) if process.steps > after => {
                process.is_dead = true;
                OFF
            }
            Fate::AnswerLost(after) if process.steps > after && step == Step::Name => {
                Verdict::FailAfter(ErrorKind::TimedOut)
            }
            Fate::StepFails(after, kind) if process.steps > after => Verdict::Fail(kind),
            _ => return Verdict::Proceed,
        };
        process.fate = Fate::Lives;
        process.is_hit = true;
        verdict
    }
}

/// A process that runs.
pub struct Running {
    turns: Turns,
    number: usize,
}

impl Running {
    /// The disk as this process has it.
    pub fn files(&self, disk: &SimFiles) -> SimFiles {
        let (turns, number) = (self.turns.clone(), self.number);
        let hook: Hook = Arc::new(move |op: &SimOp| {
            turns.step(number, if matches!(op, SimOp::Rename(..)) { Step::Name } else { Step::Act })
        });
        disk.with_hook(hook)
    }

    /// A storage on that disk as this process has it.
    pub fn storage(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(Gated { inner, turns: self.turns.clone(), number: self.number })
    }

    /// Whether anything of its fate, or the end of the power, has reached it.
    pub fn is_hit(&self) -> bool {
        self.turns.state().processes[self.number].is_hit
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.processes[self.number].has_ended = true;
        if state.chosen == self.number {
            state.left = 0;
        }
        drop(state);
        self.turns.0.1.notify_all();
    }
}

/// A storage whose reads are steps, and whose answers are. What changes the disk is in the hook's hand.
struct Gated {
    inner: Arc<dyn Storage>,
    turns: Turns,
    number: usize,
}

impl Gated {
    /// A device may fail to give what it has, and a name may be out of reach: to `repair` these are not the same.
    fn read(&self, name: &str) -> Result<(), StorageError> {
        match self.turns.step(self.number, Step::Act) {
            Verdict::Proceed => Ok(()),
            _ => {
                let source = std::io::Error::other("the device does not answer");
                let action = ["read", "open"][self.turns.state().draw.below(2)];
                Err(StorageError::Io { action, name: name.to_owned(), source })
            }
        }
    }

    /// What was done is told late.
    fn late<T>(&self, answer: T) -> T {
        self.turns.step(self.number, Step::Return);
        answer
    }
}

impl Storage for Gated {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        self.late(self.inner.create(name, parts))
    }

    fn create_from(&self, name: &str, fill: &mut Fill<'_>) -> Result<Created, StorageError> {
        self.late(self.inner.create_from(name, fill))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        self.read(name)?;
        self.inner.open(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        self.read(folder)?;
        self.inner.list(folder)
    }

    fn leave_twin(&self, name: &str, parts: &[&[u8]]) -> bool {
        self.inner.leave_twin(name, parts)
    }

    fn has_twins(&self) -> bool {
        self.inner.has_twins()
    }

    fn tidy(&self) {
        self.inner.tidy();
    }

    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
        self.read("sessions")?;
        let is_mistaken = {
            let mut state = self.turns.state();
            let mistaken_in = state.mistaken_in;
            mistaken_in > 0 && state.draw.below(mistaken_in) == 0
        };
        Ok(self.inner.is_writer_gone(writer)? || is_mistaken)
    }

    fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.late(self.inner.restore(name, bytes))
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.late(self.inner.delete(name))
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        self.late(self.inner.persist(folder))
    }

    pass_on!(admit_writer admit_collector);
}
