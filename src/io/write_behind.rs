//! A file that is written while it is still being made.

use super::direct::Direct;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Bytes in the page cache after which a write-back is begun.
const WRITE_BACK_BYTES: usize = 64 << 20;

/// A file with large pieces written past the page cache, and what waits in there written back now and then, rather than
/// all at the end.
#[derive(Debug)]
pub struct WriteBehind {
    file: Arc<File>,
    direct: Direct,
    /// Bytes written to the page cache since the last write-back was begun.
    unsynced_bytes: usize,
    write_back: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBehind {
    /// A file that is open for writing.
    pub fn new(file: File) -> Self {
        Self { file: Arc::new(file), direct: Direct::default(), unsynced_bytes: 0, write_back: None }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes parts that follow each other. An error may be that of a part written before.
    pub fn write_parts_at(&mut self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.unsynced_bytes += self.direct.write_parts_at(&self.file, offset, parts)?;
        if self.unsynced_bytes >= WRITE_BACK_BYTES { self.begin_write_back() } else { Ok(()) }
    }

    fn begin_write_back(&mut self) -> io::Result<()> {
        if self.write_back.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.end_write_back()?;
        self.unsynced_bytes = 0;
        let file = self.file.clone();
        // Where no thread can be had, all is written back at the end.
        self.write_back = Builder::new().spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Waits for what was begun. Its failure is this file's: a later sync would not tell of it again.
    fn end_write_back(&mut self) -> io::Result<()> {
        let Some(running) = self.write_back.take() else { return Ok(()) };
        running.join().unwrap_or_else(|_| Err(io::Error::other("the write-back thread is gone")))
    }

    /// Makes everything durable.
    pub fn sync_all(&mut self) -> io::Result<()> {
        self.end_write_back()?;
        self.file.sync_all()
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        // A file that is given up may fail to be written; but afterwards nobody has it open any more.
        let _ = self.end_write_back();
    }
}
