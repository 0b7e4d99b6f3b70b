//! [`Storage`] in memory, with an object store's manners and none of a file system's: whole objects, put if
//! absent, ranged get, list, delete, no directories, no maps, and no name ever used twice.

use super::map::Bytes;
use super::storage::{Created, Listed, Object, Storage, StorageError, check_name};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Objects in memory. Clones share them, as handles on one bucket do.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Arc<Vec<u8>>>,
    deleted: BTreeSet<String>,
    are_all_gone: bool,
}

impl Memory {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether every writer is taken for gone from now on: the worst that a storage can say.
    pub fn take_all_for_gone(&self, are_gone: bool) {
        self.state().are_all_gone = are_gone;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for Memory {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        check_name(name)?;
        let mut state = self.state();
        if state.deleted.contains(name) {
            // Allowed by object stores, forbidden by our protocol: the strict storage finds who does it.
            return Err(StorageError::Io {
                action: "create",
                name: name.to_owned(),
                source: std::io::Error::other("this name was used before"),
            });
        }
        if state.objects.contains_key(name) {
            return Ok(Created::Existed);
        }
        state.objects.insert(name.to_owned(), Arc::new(parts.concat()));
        Ok(Created::New)
    }

    fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        check_name(name)?;
        self.state().objects.insert(name.to_owned(), Arc::new(bytes.to_vec()));
        Ok(())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        check_name(name)?;
        let bytes = self.state().objects.get(name).cloned();
        let bytes = bytes.ok_or_else(|| StorageError::NotFound { name: name.to_owned() })?;
        Ok(Arc::new(MemoryObject { name: name.to_owned(), bytes }))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let listed =
            |(name, bytes): (&String, &Arc<Vec<u8>>)| Listed { name: name.clone(), len: bytes.len() as u64 };
        Ok(self.state().objects.iter().filter(|(name, _)| name.starts_with(&prefix)).map(listed).collect())
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        check_name(name)?;
        let mut state = self.state();
        if state.objects.remove(name).is_some() {
            state.deleted.insert(name.to_owned());
        }
        Ok(())
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        check_name(folder)
    }

    fn admit_writer(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn admit_collector(&self) -> Result<bool, StorageError> {
        Ok(false)
    }

    /// Nobody shows signs of life here: all are there, or all are taken for gone.
    fn is_writer_gone(&self, _writer: &str) -> Result<bool, StorageError> {
        Ok(self.state().are_all_gone)
    }
}

struct MemoryObject {
    name: String,
    bytes: Arc<Vec<u8>>,
}

impl Object for MemoryObject {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let end = offset.saturating_add(buffer.len() as u64);
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        let bytes = range
            .and_then(|(start, end)| self.bytes.get(start..end))
            .ok_or_else(|| StorageError::Short { name: self.name.clone(), len: self.len(), offset, end })?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        Ok(Bytes::Owned(self.bytes.clone()))
    }
}
