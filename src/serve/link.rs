//! A connection: messages over a pair of streams, at most so fast.

use super::error::LinkError;
use super::message::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Message};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Messages that are taken in before somebody asks for them. With this the side that answers never waits for the side
/// that asks to read, as long as no more requests than that are on their way.
pub const TAKEN_IN: usize = 64;
/// Bytes of such messages, if there are several.
const TAKEN_IN_BYTES: usize = 16 << 20;
/// Between two looks at whether anybody still asks.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes between two looks at the clock.
const PACE_BYTES: usize = 16 << 10;
/// Bytes that are read and written at once.
const READ_BYTES: usize = 64 << 10;

/// A message as it came: its head, which is decoded when somebody asks for it, and its body.
pub type Raw = (Vec<u8>, Vec<u8>);

/// What came, or why nothing will any more.
type Came = Result<Raw, LinkError>;

/// Bytes that wait to be asked for.
#[derive(Default)]
struct Waiting {
    bytes: Mutex<usize>,
    fewer: Condvar,
}

impl Waiting {
    /// Waits until there is room for so many; whether there is.
    fn admit(self: &Arc<Self>, len: usize) -> bool {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *bytes > 0 && *bytes + len > TAKEN_IN_BYTES {
            // Nobody will ask for any.
            if Arc::strong_count(self) == 1 {
                return false;
            }
            bytes = self.fewer.wait_timeout(bytes, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        *bytes += len;
        true
    }

    fn release(&self, len: usize) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) -= len;
        self.fewer.notify_one();
    }
}

/// A connection. All methods may be called from several threads.
pub struct Link {
    writer: Mutex<BufWriter<Paced<Box<dyn Write + Send>>>>,
    incoming: Receiver<Came>,
    waiting: Arc<Waiting>,
    sent: AtomicU64,
    received: Arc<AtomicU64>,
    /// Bytes that came, also of a message that has not come whole.
    came: Arc<AtomicU64>,
    patience: Option<Patience>,
}

/// How long is waited for a sign of the other side.
struct Patience {
    most: Duration,
    is_cancelled: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Link {
    /// A connection over two streams. If `bytes_per_second` is given, no more than that goes either way. A thread reads
    /// until the stream ends.
    pub fn new(
        reader: Box<dyn Read + Send>,
        writer: Box<dyn Write + Send>,
        bytes_per_second: Option<u64>,
    ) -> Result<Self, LinkError> {
        let received = Arc::new(AtomicU64::new(0));
        let (came, incoming) = bounded(TAKEN_IN);
        let waiting = Arc::new(Waiting::default());
        let (counter, room) = (received.clone(), waiting.clone());
        let came_bytes = Arc::<AtomicU64>::default();
        let stream = Counted { stream: Paced::new(reader, bytes_per_second), bytes: came_bytes.clone() };
        let mut reader = BufReader::with_capacity(READ_BYTES, stream);
        let read = move || loop {
            let next = read_message(&mut reader, &counter);
            let is_end = next.is_err();
            if next.as_ref().is_ok_and(|raw| !room.admit(len_of(raw))) {
                return;
            }
            if came.send(next).is_err() || is_end {
                return;
            }
        };
        thread::Builder::new().name("link".into()).spawn(read).map_err(|e| LinkError::lost(&e))?;
        let writer = BufWriter::with_capacity(READ_BYTES, Paced::new(writer, bytes_per_second));
        let (sent, patience) = (AtomicU64::new(0), None);
        Ok(Self { writer: Mutex::new(writer), incoming, waiting, sent, received, came: came_bytes, patience })
    }

    /// The same, which is taken for lost once nothing has come for so long while something is waited for, or if `is_cancelled`
    /// says that nothing is to be waited for any more. For the side that nobody looks at: of a line that died it hears nothing.
    #[must_use]
    pub fn giving_up_after(
        mut self,
        most: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        self.patience = Some(Patience { most, is_cancelled: Box::new(is_cancelled) });
        self
    }

    /// Sends a message without a body.
    pub fn send(&self, message: &Message) -> Result<(), LinkError> {
        self.send_with(message, &[])
    }

    /// Sends a message and the bytes behind it. They are on their way when it returns.
    pub fn send_with(&self, message: &Message, body: &[u8]) -> Result<(), LinkError> {
        self.put(message, body, true)
    }

    /// As [`Link::send_with`], and the bytes may wait here for others that follow.
    pub fn queue(&self, message: &Message, body: &[u8]) -> Result<(), LinkError> {
        self.put(message, body, false)
    }

    fn put(&self, message: &Message, body: &[u8], flush: bool) -> Result<(), LinkError> {
        let head = message.encode()?;
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut writer = self.writer();
        let put = |writer: &mut BufWriter<_>| {
            for part in [&len(&head)[..], &len(body)[..], &head, body] {
                Write::write_all(writer, part)?;
            }
            if flush { Write::flush(writer) } else { Ok(()) }
        };
        put(&mut writer).map_err(|e| LinkError::lost(&e))?;
        self.sent.fetch_add((8 + head.len() + body.len()) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Sends what waits.
    pub fn flush(&self) -> Result<(), LinkError> {
        self.writer().flush().map_err(|e| LinkError::lost(&e))
    }

    /// The next message with its body; waits for it.
    pub fn receive(&self) -> Result<(Message, Vec<u8>), LinkError> {
        let raw = self.next()?;
        self.waiting.release(len_of(&raw));
        let (head, body) = raw;
        Ok((Message::decode(&head, body.len())?, body))
    }

    fn next(&self) -> Came {
        let lost = |why: &str| Err(LinkError::Lost { why: why.into() });
        let (mut heard, mut came) = (Instant::now(), self.came.load(Ordering::Relaxed));
        loop {
            let Some(patience) = &self.patience else {
                return self.incoming.recv().unwrap_or_else(|_| lost("it ended before"));
            };
            match self.incoming.recv_timeout(LOOK) {
                Ok(next) => return next,
                Err(RecvTimeoutError::Disconnected) => return lost("it ended before"),
                Err(RecvTimeoutError::Timeout) if (patience.is_cancelled)() => {
                    return lost("this side was told to end");
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.came.load(Ordering::Relaxed);
            if now != came {
                (heard, came) = (Instant::now(), now);
            } else if heard.elapsed() >= patience.most {
                return lost("nothing was heard of it for too long");
            }
        }
    }

    /// Waits until the other side says something that nobody expects, which is as a rule that it is gone.
    pub fn watch(&self) -> &Receiver<Came> {
        &self.incoming
    }

    /// Bytes that were sent so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that were received so far.
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn writer(&self) -> MutexGuard<'_, BufWriter<Paced<Box<dyn Write + Send>>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_message(reader: &mut impl Read, received: &AtomicU64) -> Came {
    let mut lens = [0; 8];
    read_exact(reader, &mut lens)?;
    let len = |at: usize| {
        let bytes = [lens[at], lens[at + 1], lens[at + 2], lens[at + 3]];
        usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
    };
    let (head_len, body_len) = (len(0), len(4));
    if head_len > HEAD_BYTES_MAX || body_len > BODY_BYTES_MAX {
        return Err(LinkError::protocol(format!("a message of {head_len} and {body_len} bytes")));
    }
    let head = read_bytes(reader, head_len)?;
    let body = read_bytes(reader, body_len)?;
    received.fetch_add((8 + head_len + body_len) as u64, Ordering::Relaxed);
    Ok((head, body))
}

fn len_of((head, body): &Raw) -> usize {
    head.len() + body.len()
}

/// Memory grows with what comes, not with what was announced.
fn read_bytes(reader: &mut impl Read, len: usize) -> Result<Vec<u8>, LinkError> {
    let mut bytes = Vec::with_capacity(len.min(READ_BYTES));
    let read = reader.take(len as u64).read_to_end(&mut bytes).map_err(|e| LinkError::lost(&e))?;
    if read < len { Err(ended()) } else { Ok(bytes) }
}

fn read_exact(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), LinkError> {
    reader.read_exact(bytes).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => ended(),
        _ => LinkError::lost(&e),
    })
}

fn ended() -> LinkError {
    LinkError::Lost { why: "the other side closed it".into() }
}

/// A stream that is slowed down so that, over time, no more than so many bytes a second go through it.
struct Paced<S> {
    stream: S,
    bytes_per_second: Option<u64>,
    /// Until when what went through should have lasted.
    due: Instant,
}

/// What was not used of the rate is made up for, for so long.
const PACE_BURST: Duration = Duration::from_millis(200);

impl<S> Paced<S> {
    fn new(stream: S, bytes_per_second: Option<u64>) -> Self {
        Self { stream, bytes_per_second, due: Instant::now() }
    }

    fn went(&mut self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let earliest = now.checked_sub(PACE_BURST).unwrap_or(now);
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / rate.max(1);
        self.due = self.due.max(earliest) + Duration::from_nanos(nanos);
        thread::sleep(self.due.saturating_duration_since(now));
    }

    fn limit(&self, len: usize) -> usize {
        if self.bytes_per_second.is_some() { len.min(PACE_BYTES) } else { len }
    }
}

/// A stream that says how much came over it.
struct Counted<R> {
    stream: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let limit = self.limit(buffer.len());
        let read = self.stream.read(&mut buffer[..limit])?;
        self.went(read);
        Ok(read)
    }
}

impl<W: Write> Write for Paced<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let limit = self.limit(buffer.len());
        let written = self.stream.write(&buffer[..limit])?;
        self.went(written);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}
