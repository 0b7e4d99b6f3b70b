//! A simulated file system with everything that a crash can do to it, for tests of durability.
//!
//! It keeps what a program sees (*live*) and, in a log of operations, what a disk may have seen of it. A
//! crash at any point of the log gives many possible disks: [`SimFiles::crash`] builds one of them.
//!
//! The model, which is that of ext4, XFS and btrfs without their kindnesses:
//! - bytes written to a file survive surely once the file was synced; before that any subset of its 512-byte
//!   sectors may, the others read as zeros; its length is any that it had since its last sync;
//! - making, renaming and removing names in a directory survives surely once that directory was synced;
//!   before that a prefix of the changes to it does (a journal commits in order);
//! - directories commit independently of each other, and of the files' bytes.

use super::files::{DirEntry, Files, ReadFile, Space, WriteFile};
use super::map::Bytes;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One operation on the simulated disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimOp {
    /// A directory entry for a new directory.
    MakeDir(PathBuf),
    /// A directory entry for a new file with this inode.
    Create(PathBuf, u64),
    /// Bytes appended to an inode.
    Write(u64, Arc<Vec<u8>>),
    /// An inode's bytes are durable.
    Sync(u64),
    /// A name moved within the tree.
    Rename(PathBuf, PathBuf),
    /// A name removed.
    Remove(PathBuf),
    /// A directory's entries are durable.
    SyncDir(PathBuf),
}

/// An operation about to be done, as a hook sees it.
pub type Hook = Arc<dyn Fn(&SimOp) -> Verdict + Send + Sync>;

/// What a hook makes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Proceed,
    /// Say that it was done, and do nothing: a lie, to seed a bug.
    Skip,
    /// Fail with this error, without doing it.
    Fail(io::ErrorKind),
    /// Do it, and fail with this error: an answer that is lost. Of renaming only; anything else is not done.
    FailAfter(io::ErrorKind),
    /// Do half of it, and fail with this error. Of writing only; anything else is not done.
    FailPartWay(io::ErrorKind),
}

/// Something about to be read, as a hook sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimRead<'a> {
    /// A file is opened.
    Open(&'a Path),
    /// The bytes of an open file, some or all of them.
    Bytes(&'a Path),
    /// The names in a folder.
    List(&'a Path),
    /// Whether somebody holds a lock.
    IsLocked(&'a Path),
}

/// What fails when it is read: the error that a hook gives.
pub type ReadHook = Arc<dyn Fn(SimRead<'_>) -> io::Result<()> + Send + Sync>;

/// How a crash chooses among the possible disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashMode {
    /// Nothing that was not synced survives.
    DropUnsynced,
    /// Everything survives.
    KeepAll,
    /// Any mixture, drawn by this seed, with writes torn at 512 bytes and 4 KiB.
    Mixed(u64),
}

/// The simulated file system. Clones share it.
#[derive(Clone, Default)]
pub struct SimFiles {
    state: Arc<Mutex<State>>,
    hook: Option<Hook>,
    read_hook: Option<ReadHook>,
}

#[derive(Default)]
struct State {
    /// Names that a program sees: directories and files.
    names: BTreeMap<PathBuf, Node>,
    contents: BTreeMap<u64, Arc<Vec<u8>>>,
    next_inode: u64,
    log: Vec<SimOp>,
    locks: HashSet<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

impl SimFiles {
    /// An empty file system; `/` is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle on the same files whose operations go through a hook first.
    pub fn with_hook(&self, hook: Hook) -> Self {
        Self { hook: Some(hook), ..self.clone() }
    }

    /// A handle on the same files what is read of which goes through a hook first.
    pub fn with_read_hook(&self, hook: ReadHook) -> Self {
        Self { read_hook: Some(hook), ..self.clone() }
    }

    /// Operations done so far.
    pub fn operations(&self) -> usize {
        self.state().log.len()
    }

    /// The first `count` operations.
    pub fn log(&self, count: usize) -> Vec<SimOp> {
        self.state().log[..count].to_vec()
    }

    /// One of the disks that a crash after the first `count` operations may leave, freshly mounted.
    pub fn crash(&self, count: usize, mode: CrashMode) -> Self {
        let disk = crashed(&self.log(count), mode);
        Self { state: Arc::new(Mutex::new(disk)), ..Self::default() }
    }

    /// What is there, as if it had been written and synced just now: so that what a crash has left can be
    /// crashed again.
    #[must_use]
    pub fn settled(&self) -> Self {
        let mut state = self.state();
        let mut log = Vec::new();
        for (path, node) in &state.names {
            match node {
                Node::Dir => log.push(SimOp::MakeDir(path.clone())),
                Node::File(inode) => {
                    log.push(SimOp::Create(path.clone(), *inode));
                    let bytes = state.contents.get(inode).cloned().unwrap_or_default();
                    log.extend([SimOp::Write(*inode, bytes), SimOp::Sync(*inode)]);
                }
            }
        }
        let dirs = state.names.iter().filter(|(_, node)| **node == Node::Dir).map(|(path, _)| path.clone());
        log.extend(dirs.chain([PathBuf::from("/")]).map(SimOp::SyncDir));
        state.log = log;
        drop(state);
        self.clone()
    }

    /// Flips, cuts or replaces a file's bytes: damage.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(Node::File(inode)) = state.names.get(path).copied() {
            let mut bytes = state.contents.get(&inode).map(|b| b.to_vec()).unwrap_or_default();
            change(&mut bytes);
            state.contents.insert(inode, Arc::new(bytes));
        }
    }

    /// Every file with its length.
    pub fn all_files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let len = |inode: &u64| state.contents.get(inode).map_or(0, |bytes| bytes.len() as u64);
        let file = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(inode) => Some((path.clone(), len(inode))),
            Node::Dir => None,
        };
        state.names.iter().filter_map(file).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verdict(&self, op: &SimOp) -> Verdict {
        self.hook.as_ref().map_or(Verdict::Proceed, |hook| hook(op))
    }

    /// Whether an operation is to be done; an error is the hook's.
    fn admit(&self, op: &SimOp) -> io::Result<bool> {
        match self.verdict(op) {
            Verdict::Proceed => Ok(true),
            Verdict::Skip => Ok(false),
            Verdict::Fail(kind) | Verdict::FailAfter(kind) | Verdict::FailPartWay(kind) => Err(kind.into()),
        }
    }
}

fn admit_read(hook: Option<&ReadHook>, read: SimRead<'_>) -> io::Result<()> {
    hook.map_or(Ok(()), |hook| hook(read))
}

impl State {
    fn node(&self, path: &Path) -> io::Result<Node> {
        if path.parent().is_none() {
            return Ok(Node::Dir);
        }
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.node(path)? {
            Node::File(inode) => Ok(inode),
            Node::Dir => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn require_dir(&self, path: Option<&Path>) -> io::Result<()> {
        match path.map_or(Ok(Node::Dir), |path| self.node(path))? {
            Node::Dir => Ok(()),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The effect of an operation on the names and contents.
    fn perform(&mut self, op: &SimOp) {
        match op {
            SimOp::MakeDir(path) => drop(self.names.insert(path.clone(), Node::Dir)),
            SimOp::Create(path, inode) => {
                self.names.insert(path.clone(), Node::File(*inode));
                self.contents.entry(*inode).or_default();
            }
            SimOp::Write(inode, bytes) => {
                Arc::make_mut(self.contents.entry(*inode).or_default()).extend_from_slice(bytes);
            }
            SimOp::Rename(from, to) => {
                if let Some(node) = self.names.remove(from) {
                    self.names.insert(to.clone(), node);
                }
            }
            SimOp::Remove(path) => drop(self.names.remove(path)),
            SimOp::Sync(_) | SimOp::SyncDir(_) => {}
        }
    }
}

impl Files for SimFiles {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let op = SimOp::MakeDir(path.to_owned());
        let proceed = self.admit(&op)?;
        let mut state = self.state();
        state.require_dir(path.parent())?;
        match state.node(path) {
            Ok(Node::Dir) => return Ok(()),
            Ok(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => {}
        }
        if proceed {
            state.perform(&op);
            state.log.push(op);
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut state = self.state();
        state.require_dir(path.parent())?;
        if state.node(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.next_inode += 1;
        let inode = state.next_inode;
        let op = SimOp::Create(path.to_owned(), inode);
        drop(state);
        if self.admit(&op)? {
            let mut state = self.state();
            state.perform(&op);
            state.log.push(op);
        }
        Ok(Box::new(SimWriteFile { files: self.clone(), inode }))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let op = SimOp::Rename(from.to_owned(), to.to_owned());
        let verdict = self.verdict(&op);
        if let Verdict::Fail(kind) | Verdict::FailPartWay(kind) = verdict {
            return Err(kind.into());
        }
        let mut state = self.state();
        state.file(from)?;
        state.require_dir(to.parent())?;
        if state.node(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if verdict != Verdict::Skip {
            state.perform(&op);
            state.log.push(op);
        }
        if let Verdict::FailAfter(kind) = verdict { Err(kind.into()) } else { Ok(()) }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let op = SimOp::Remove(path.to_owned());
        let proceed = self.admit(&op)?;
        let mut state = self.state();
        state.require_dir(Some(path))?;
        if state.names.keys().any(|name| name.parent() == Some(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if proceed {
            state.perform(&op);
            state.log.push(op);
        }
        Ok(())
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        let op = SimOp::Rename(from.to_owned(), to.to_owned());
        let proceed = self.admit(&op)?;
        let mut state = self.state();
        state.file(from)?;
        state.require_dir(to.parent())?;
        if proceed {
            state.perform(&op);
            state.log.push(op);
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let op = SimOp::SyncDir(path.to_owned());
        let proceed = self.admit(&op)?;
        let mut state = self.state();
        state.require_dir(Some(path))?;
        if proceed {
            state.log.push(op);
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        admit_read(self.read_hook.as_ref(), SimRead::Open(path))?;
        let state = self.state();
        let inode = state.file(path)?;
        let bytes = state.contents.get(&inode).cloned().unwrap_or_default();
        Ok(Arc::new(SimReadFile { bytes, path: path.to_owned(), hook: self.read_hook.clone() }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        admit_read(self.read_hook.as_ref(), SimRead::List(path))?;
        let state = self.state();
        state.require_dir(Some(path))?;
        let below = state.names.iter().filter(|(name, _)| name.parent() == Some(path));
        let entry = |(name, node): (&PathBuf, &Node)| DirEntry {
            name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            is_dir: *node == Node::Dir,
            len: match node {
                Node::File(inode) => state.contents.get(inode).map_or(0, |b| b.len() as u64),
                Node::Dir => 0,
            },
        };
        Ok(below.map(entry).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let op = SimOp::Remove(path.to_owned());
        let proceed = self.admit(&op)?;
        let mut state = self.state();
        state.file(path)?;
        if proceed {
            state.perform(&op);
            state.log.push(op);
        }
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(Space { total: 1 << 40, available: 1 << 40 })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.state().locks.insert(path.to_owned());
        Ok(Box::new(SimLock { files: self.clone(), path: path.to_owned() }))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        admit_read(self.read_hook.as_ref(), SimRead::IsLocked(path))?;
        Ok(self.state().locks.contains(path))
    }
}

struct SimLock {
    files: SimFiles,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.files.state().locks.remove(&self.path);
    }
}

struct SimWriteFile {
    files: SimFiles,
    inode: u64,
}

impl SimWriteFile {
    fn act(&self, op: SimOp) -> io::Result<()> {
        if self.files.admit(&op)? {
            self.perform(op);
        }
        Ok(())
    }

    fn perform(&self, op: SimOp) {
        let mut state = self.files.state();
        state.perform(&op);
        state.log.push(op);
    }
}

impl WriteFile for SimWriteFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = |bytes: &[u8]| SimOp::Write(self.inode, Arc::new(bytes.to_vec()));
        let op = written(bytes);
        match self.files.verdict(&op) {
            Verdict::Proceed => self.perform(op),
            Verdict::Skip => {}
            Verdict::Fail(kind) | Verdict::FailAfter(kind) => return Err(kind.into()),
            Verdict::FailPartWay(kind) => {
                self.perform(written(&bytes[..bytes.len() / 2]));
                return Err(kind.into());
            }
        }
        Ok(())
    }

    fn close_up(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn seal(&mut self) -> io::Result<()> {
        self.act(SimOp::Sync(self.inode))
    }
}

struct SimReadFile {
    bytes: Arc<Vec<u8>>,
    path: PathBuf,
    hook: Option<ReadHook>,
}

impl ReadFile for SimReadFile {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        admit_read(self.hook.as_ref(), SimRead::Bytes(&self.path))?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.bytes.get(start..start.saturating_add(buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn bytes(&self, _map: bool) -> io::Result<Bytes> {
        admit_read(self.hook.as_ref(), SimRead::Bytes(&self.path))?;
        Ok(Bytes::Owned(self.bytes.clone()))
    }
}

/// A small generator: crash states must be the same for the same seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let high = usize::try_from(self.0 >> 33).unwrap_or(0);
        if bound == 0 { 0 } else { high % bound }
    }
}

/// The disk after a crash.
fn crashed(log: &[SimOp], mode: CrashMode) -> State {
    let mut draw = Draw(match mode {
        CrashMode::Mixed(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        CrashMode::DropUnsynced | CrashMode::KeepAll => 1,
    });
    let created = |op: &SimOp| if let SimOp::Create(_, inode) = op { Some(*inode) } else { None };
    let next_inode = log.iter().filter_map(created).max().unwrap_or(0).max(1 << 32);
    let mut disk = State { next_inode, ..State::default() };
    for op in surviving_names(log, mode, &mut draw) {
        disk.perform(op);
    }
    // A file or directory whose parent was lost cannot be reached.
    let lost: Vec<_> =
        disk.names.keys().filter(|path| disk.require_dir(path.parent()).is_err()).cloned().collect();
    for path in lost {
        disk.names.retain(|name, _| !name.starts_with(&path));
    }
    let inodes: Vec<_> =
        disk.names.values().filter_map(|n| if let Node::File(i) = n { Some(*i) } else { None }).collect();
    for inode in inodes {
        let bytes = surviving_bytes(log, inode, mode, &mut draw);
        disk.contents.insert(inode, Arc::new(bytes));
    }
    disk
}

/// The changes of names that survive: of each directory's changes those before its last sync, and of those
/// after it a prefix.
fn surviving_names<'a>(log: &'a [SimOp], mode: CrashMode, draw: &mut Draw) -> Vec<&'a SimOp> {
    let parent = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    // A rename changes two directories in one transaction; the target's is the one whose sync matters.
    let changed = |op: &SimOp| match op {
        SimOp::MakeDir(path) | SimOp::Create(path, _) | SimOp::Remove(path) => Some(parent(path)),
        SimOp::Rename(_, to) => Some(parent(to)),
        SimOp::Write(..) | SimOp::Sync(_) | SimOp::SyncDir(_) => None,
    };
    let mut synced_until: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut changes: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
    for (at, op) in log.iter().enumerate() {
        if let SimOp::SyncDir(dir) = op {
            synced_until.insert(dir.clone(), at);
        } else if let Some(dir) = changed(op) {
            changes.entry(dir).or_default().push(at);
        }
    }
    let mut kept = Vec::new();
    for (dir, changes) in changes {
        let synced = synced_until.get(&dir).copied().unwrap_or(0);
        let sure = changes.partition_point(|&at| at < synced);
        let extra = match mode {
            CrashMode::DropUnsynced => 0,
            CrashMode::KeepAll => changes.len() - sure,
            CrashMode::Mixed(_) => draw.below(changes.len() - sure + 1),
        };
        kept.extend(&changes[..sure + extra]);
    }
    // A renamed file has its inode even if the creation of its first name was never made durable.
    let renamed: HashSet<&PathBuf> = kept
        .iter()
        .filter_map(|&at| if let SimOp::Rename(from, _) = &log[at] { Some(from) } else { None })
        .collect();
    let creations = log
        .iter()
        .enumerate()
        .filter(|(_, op)| matches!(op, SimOp::Create(path, _) if renamed.contains(path)));
    kept.extend(creations.map(|(at, _)| at));
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|at| &log[at]).collect()
}

/// An inode's bytes that survive: all that were synced; of the others some sectors, the rest zeros.
fn surviving_bytes(log: &[SimOp], inode: u64, mode: CrashMode, draw: &mut Draw) -> Vec<u8> {
    let (mut bytes, mut synced) = (Vec::new(), 0);
    for op in log {
        match op {
            SimOp::Write(of, written) if *of == inode => bytes.extend_from_slice(written),
            SimOp::Sync(of) if *of == inode => synced = bytes.len(),
            _ => {}
        }
    }
    match mode {
        CrashMode::KeepAll => {}
        CrashMode::DropUnsynced => bytes.truncate(synced),
        CrashMode::Mixed(_) => {
            bytes.truncate(synced + draw.below(bytes.len() - synced + 1));
            let sector = if draw.below(2) == 0 { 512 } else { 4096 };
            let mut at = synced;
            while at < bytes.len() {
                let end = ((at / sector + 1) * sector).min(bytes.len());
                if draw.below(2) == 0 {
                    bytes[at..end].fill(0);
                }
                at = end;
            }
        }
    }
    bytes
}
