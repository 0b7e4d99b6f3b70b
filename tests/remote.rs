//! Regions on another host: what goes over the line, how often, and what becomes of it when the line breaks, the other
//! side lies, or is somebody who is only let in.

mod common;

use common::{Caller, Draw, MemoryDisk, import_disks, memory_region, small_packs, volume};
use imgstore::chunk::frame::{Codec, CodecPool, Frame, chunk_id};
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::account::{AccountId, Permission, Tag};
use imgstore::model::blockmap::BlockMap;
use imgstore::model::ids::{ChunkId, ObjectHash, SessionId, SnapshotId};
use imgstore::model::image::{BlockDeviceMapping, DeviceTarget};
use imgstore::model::objects::ManifestName;
use imgstore::model::region::ChunkerParams;
use imgstore::model::snapshot::Snapshot as SnapshotRecord;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::error::{Class, Code, OpsError};
use imgstore::ops::modify::{PermissionChange, Target, share_snapshot, tag};
use imgstore::ops::owned::Trusted;
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::source::Source;
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::{Region, RegionOptions};
use imgstore::serve::error::{LinkError, Refusal};
use imgstore::serve::giver::{GivenTo, Giver};
use imgstore::serve::host::{Doors, serve};
use imgstore::serve::link::Link;
use imgstore::serve::message::{Message, NewRegion, VERSION, Welcome};
use imgstore::serve::peer::Peer;
use imgstore::serve::push::{Pushed, push};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

/// A region that callers are let in to.
struct Door(Region);

impl Doors for Door {
    fn open(&self, _: Option<&NewRegion>) -> Result<Region, OpsError> {
        Ok(self.0.clone())
    }

    fn run(&self, arguments: &[String], link: &Link) -> Result<u8, OpsError> {
        link.send_with(&Message::Output { is_error: false }, arguments.join(" ").as_bytes())?;
        Ok(3)
    }
}

/// A line that breaks after so many more bytes have come over it.
struct Breaking {
    stream: UnixStream,
    left: Arc<AtomicI64>,
}

impl Read for Breaking {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(buffer)?;
        let left = self.left.fetch_sub(read as i64, Ordering::SeqCst) - read as i64;
        if left < 0 {
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            return Err(std::io::Error::other("the line broke"));
        }
        Ok(read)
    }
}

/// A manifest's name as guests see it.
const NOBODYS: ManifestName = ManifestName { session: SessionId([0; 16]), number: 0 };
const NEVER: i64 = i64::MAX / 2;

fn link(stream: UnixStream, left: Arc<AtomicI64>) -> Link {
    let reader = Breaking { stream: stream.try_clone().unwrap(), left };
    Link::new(Box::new(reader), Box::new(Ending(stream)), None).unwrap()
}

/// The way out of a line, which ends when nobody holds it any more.
struct Ending(UnixStream);

impl Write for Ending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn plain_link(stream: UnixStream) -> Link {
    link(stream, Arc::new(AtomicI64::new(NEVER)))
}

/// A line to somebody who has a region. What breaks is the way from there to here, or from here to there.
struct Line {
    link: Link,
    welcome: Welcome,
}

fn call(region: &Region, account: AccountId, is_guest: bool, to_here: i64, to_there: i64) -> Line {
    let (here, there) = UnixStream::pair().unwrap();
    host(there, region.clone(), account, is_guest, to_there);
    let link = link(here, Arc::new(AtomicI64::new(to_here)));
    let welcome = hello(&link);
    Line { link, welcome }
}

fn host(stream: UnixStream, region: Region, account: AccountId, is_guest: bool, left: i64) {
    thread::spawn(move || {
        let link = link(stream, Arc::new(AtomicI64::new(left)));
        let caller = Caller { account, ..Caller::new(1) };
        let _ = serve(&link, &Door(region), is_guest, &caller.context());
    });
}

fn hello(link: &Link) -> Welcome {
    link.send(&Message::Hello { version: VERSION, create: None }).unwrap();
    match link.receive().unwrap().0 {
        Message::Welcome(welcome) => welcome,
        other => panic!("{other:?}"),
    }
}

impl Line {
    fn to(region: &Region, caller: &Caller) -> Self {
        call(region, caller.account, false, NEVER, NEVER)
    }

    fn peer(&self) -> Peer<'_> {
        Peer::new(&self.link, self.welcome.region, &self.welcome.name)
    }
}

/// Takes a snapshot from there; gives its id here, and the bytes moved.
fn pull(
    source: &Peer<'_>,
    target: &Region,
    id: SnapshotId,
    context: &Context<'_>,
) -> Result<(SnapshotId, u64), OpsError> {
    let (what, options) = (CopyWhat::Snapshot(id), CopyOptions::default());
    let plan = plan(source, target, what, &options, context)?;
    let copied = apply(source, target, &plan, &options, context)?;
    Ok((copied.snapshots[0].id, copied.transferred_bytes))
}

fn region() -> Region {
    memory_region(&Memory::new(), &small_packs())
}

/// Like `bytes`, with some of each of its pieces other.
fn edited(bytes: &[u8], seed: u64) -> Vec<u8> {
    let (mut edited, mut draw) = (bytes.to_vec(), Draw::new(seed));
    for piece in edited.chunks_mut(50_000) {
        let at = draw.below(piece.len());
        piece[at] ^= 1;
    }
    edited
}

fn assert_clean(region: &Region, caller: &Caller) {
    let report = verify(region, &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Two volumes that resemble each other, and with them deltas.
struct Pair {
    region: Region,
    caller: Caller,
    first: (SnapshotId, Vec<u8>),
    second: (SnapshotId, Vec<u8>),
}

impl Pair {
    fn new() -> Self {
        let (region, caller) = (region(), Caller::new(2));
        let first = volume(3 << 20, 5);
        let second = edited(&first, 6);
        let take = |bytes: &[u8]| {
            let disk = MemoryDisk::new(bytes.to_vec());
            let options = SnapshotOptions::default();
            snapshot(&region, &disk, &options, &caller.context()).unwrap().snapshot.id
        };
        let (one, two) = (take(&first), take(&second));
        Self { first: (one, first), second: (two, second), region, caller }
    }

    fn deltas(&self, region: &Region) -> usize {
        let packs: Vec<_> = region.catalog().unwrap().packs.keys().copied().collect();
        packs.iter().map(|pack| region.bases_in(pack).unwrap().len()).sum()
    }
}

#[test]
fn copies_from_there_are_what_is_there_and_deltas_travel() {
    let pair = Pair::new();
    assert!(pair.deltas(&pair.region) > 5, "nothing to see");
    let target = region();
    let line = Line::to(&pair.region, &pair.caller);
    for (id, bytes) in [&pair.first, &pair.second] {
        let (copy, _) = pull(&line.peer(), &target, *id, &pair.caller.context()).unwrap();
        assert!(pair.caller.read_back(&target, copy).unwrap() == *bytes);
    }
    assert!(pair.deltas(&target) > 5, "deltas were unpacked on the way");
    assert_clean(&target, &pair.caller);
}

/// The second volume alone: what its deltas need stays behind, and comes as whole chunks, once.
#[test]
fn a_delta_whose_base_stays_behind_comes_whole() {
    let pair = Pair::new();
    let target = region();
    let line = Line::to(&pair.region, &pair.caller);
    let (copy, moved) = pull(&line.peer(), &target, pair.second.0, &pair.caller.context()).unwrap();
    assert!(pair.caller.read_back(&target, copy).unwrap() == pair.second.1);
    let received = line.link.received_bytes();
    assert!(received < moved + moved / 8, "{received} came for {moved}");
    assert_clean(&target, &pair.caller);
}

#[test]
fn copies_to_there_belong_to_whom_the_other_side_takes_for_the_caller() {
    let pair = Pair::new();
    let target = region();
    let far = AccountId::from_random(77);
    let line = call(&target, far, false, NEVER, NEVER);
    let (options, context) = (CopyOptions::default(), pair.caller.context());
    for (id, bytes) in [&pair.first, &pair.second] {
        let what = CopyWhat::Snapshot(*id);
        let pushed = push(&line.link, &pair.region, what, &options, &context).unwrap();
        let copy = pushed.pulled.unwrap().snapshots.remove(0);
        assert_eq!((copy.owner, copy.source.unwrap().snapshot_id), (far, *id));
        assert!(pair.caller.read_back(&target, copy.id).unwrap_err().class() == Class::NotFound);
        let owner = Caller { account: far, ..Caller::new(1) };
        assert!(owner.read_back(&target, copy.id).unwrap() == *bytes);
    }
    // Again: nothing is missing.
    let what = CopyWhat::Snapshot(pair.first.0);
    let before = line.link.sent_bytes();
    let Pushed { planned, pulled } = push(&line.link, &pair.region, what, &options, &context).unwrap();
    assert_eq!((planned.new_chunks, pulled.unwrap().transferred_bytes), (0, 0));
    let map_bytes = line.link.sent_bytes() - before;
    assert!(map_bytes < 60 * planned.chunks + 5000, "{map_bytes}");
}

#[test]
fn a_dry_run_says_what_would_move_and_moves_nothing() {
    let pair = Pair::new();
    let target = region();
    let line = Line::to(&target, &pair.caller);
    let context = Context { dry_run: true, ..pair.caller.context() };
    let what = CopyWhat::Snapshot(pair.first.0);
    let pushed = push(&line.link, &pair.region, what, &CopyOptions::default(), &context).unwrap();
    assert!(pushed.pulled.is_none() && pushed.planned.transfer_bytes > 100_000);
    assert!(target.catalog().unwrap().snapshots.is_empty());
}

#[test]
fn the_same_token_makes_one_copy() {
    let pair = Pair::new();
    let target = region();
    let line = Line::to(&target, &pair.caller);
    let options = CopyOptions { client_token: Some("once".into()), ..CopyOptions::default() };
    let what = CopyWhat::Snapshot(pair.first.0);
    let copy =
        || push(&line.link, &pair.region, what, &options, &pair.caller.context()).unwrap().pulled.unwrap();
    let (one, two) = (copy(), copy());
    assert!(!one.was_made_before && two.was_made_before);
    assert_eq!(one.snapshots[0].id, two.snapshots[0].id);
    // The answer may have been lost with the line, and the source be gone when it is asked for again.
    delete_snapshot(&pair.region, pair.first.0, &pair.caller.context()).unwrap();
    let three = copy();
    assert_eq!((three.was_made_before, three.snapshots[0].id), (true, one.snapshots[0].id));
    let again = push(&line.link, &pair.region, what, &CopyOptions::default(), &pair.caller.context());
    assert_eq!(again.unwrap_err().code(), Code::SnapshotNotFound.as_str());
}

/// Ways there and back do not grow with the image.
#[test]
fn planning_takes_as_many_round_trips_for_a_small_image_as_for_a_large_one() {
    let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 1, max_blocks: 1, ..ChunkerParams::DEFAULT };
    let region = memory_region(&Memory::new(), &RegionOptions { chunker, ..small_packs() });
    let caller = Caller::new(2);
    let plan_of = |blocks: usize, seed: u64| {
        let mut draw = Draw::new(seed);
        let bytes: Vec<u8> = (0..blocks * 512).flat_map(|_| draw.next().to_le_bytes()).collect();
        let id = caller.snapshot(&region, &MemoryDisk::new(bytes)).unwrap().snapshot.id;
        let line = Line::to(&region, &caller);
        let (peer, target) = (line.peer(), self::region());
        let what = CopyWhat::Snapshot(id);
        let plan = plan(&peer, &target, what, &CopyOptions::default(), &caller.context()).unwrap();
        assert_eq!(plan.new_chunks(), blocks as u64);
        peer.round_trips()
    };
    let (small, large) = (plan_of(3, 1), plan_of(20_000, 2));
    assert_eq!(small, large);
    assert!(large <= 3, "{large}");
}

/// A line that breaks again and again: each try begins where the last one ended.
#[test]
fn what_came_before_the_line_broke_does_not_come_again() {
    let (source, target, caller) = (region(), region(), Caller::new(2));
    let mut draw = Draw::new(8);
    let bytes: Vec<u8> = (0..1 << 20).flat_map(|_| draw.next().to_le_bytes()).collect();
    let id = caller.snapshot(&source, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    for is_push in [false, true] {
        let target = if is_push { region() } else { target.clone() };
        let (mut tries, mut over_the_line) = (0, 0);
        let copy = loop {
            tries += 1;
            assert!(tries < 20, "it never ends");
            let (to_here, to_there) = if is_push { (NEVER, 3 << 20) } else { (3 << 20, NEVER) };
            let result = if is_push {
                let line = call(&target, caller.account, false, to_here, to_there);
                let what = CopyWhat::Snapshot(id);
                let pushed = push(&line.link, &source, what, &CopyOptions::default(), &caller.context());
                over_the_line += line.link.sent_bytes();
                pushed.map(|pushed| pushed.pulled.unwrap().snapshots[0].id)
            } else {
                let line = call(&source, caller.account, false, to_here, to_there);
                let pulled = pull(&line.peer(), &target, id, &caller.context()).map(|(id, _)| id);
                over_the_line += line.link.received_bytes();
                pulled
            };
            match result {
                Ok(id) => break id,
                Err(error) => assert!(matches!(error, OpsError::ConnectionLost { .. }), "{error}"),
            }
            if is_push {
                // What came last is being put away there.
                thread::sleep(std::time::Duration::from_millis(300));
            }
        };
        assert!(tries > 2, "the line did not break");
        assert!(caller.read_back(&target, copy).unwrap() == bytes);
        assert_clean(&target, &caller);
        // Of each try what was on its way when it broke is lost: a batch that was not whole, and what was read ahead.
        let most = bytes.len() as u64 + tries * (1 << 20) + if is_push { tries * (1 << 20) } else { 0 };
        assert!(over_the_line < most, "push {is_push}: {over_the_line} of {} in {tries}", bytes.len());
    }
}

/// From one host to another: it is the first one's line that breaks, and the second one waits for what it asked for.
#[test]
fn a_source_that_goes_during_a_copy_to_another_host_ends_it() {
    let (source, caller) = (region(), Caller::new(2));
    let mut draw = Draw::new(8);
    let bytes: Vec<u8> = (0..1 << 19).flat_map(|_| draw.next().to_le_bytes()).collect();
    let id = caller.snapshot(&source, &MemoryDisk::new(bytes)).unwrap().snapshot.id;
    let (told, end) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let target = region();
        for left in [20_000, 60_000, 1 << 20, 3 << 20] {
            let from = call(&source, caller.account, false, left, NEVER);
            let to = call(&target, caller.account, false, NEVER, NEVER);
            let (what, options) = (CopyWhat::Snapshot(id), CopyOptions::default());
            let pushed = push(&to.link, &from.peer(), what, &options, &caller.context());
            told.send(pushed.map(drop)).unwrap();
        }
    });
    for _ in 0..4 {
        let pushed = end.recv_timeout(std::time::Duration::from_secs(60)).expect("it waits for ever");
        assert!(matches!(pushed, Err(OpsError::ConnectionLost { .. })), "{pushed:?}");
    }
}

/// Somebody between here and an honest region, who changes what it says.
fn liar(region: &Region, lie: impl Fn(&mut Message, &mut Vec<u8>) + Send + 'static) -> Line {
    let (here, middle_here) = UnixStream::pair().unwrap();
    let (middle_there, there) = UnixStream::pair().unwrap();
    host(there, region.clone(), AccountId::from_random(1), false, NEVER);
    let (to_here, to_there) = (Arc::new(plain_link(middle_here)), Arc::new(plain_link(middle_there)));
    let (from_here, there) = (to_here.clone(), to_there.clone());
    thread::spawn(move || {
        while let Ok((message, body)) = from_here.receive() {
            if there.send_with(&message, &body).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        while let Ok((mut message, mut body)) = to_there.receive() {
            lie(&mut message, &mut body);
            if to_here.send_with(&message, &body).is_err() {
                return;
            }
        }
    });
    let link = plain_link(here);
    let welcome = hello(&link);
    Line { link, welcome }
}

type Lie = Box<dyn Fn(&mut Message, &mut Vec<u8>) + Send>;

fn lie_in_offers(change: impl Fn(&mut imgstore::ops::offer::Offer) + Send + 'static) -> Lie {
    Box::new(move |message, _| {
        if let Message::Offered(offer) = message {
            change(offer);
        }
    })
}

fn refused(error: &OpsError) -> Message {
    Message::Refused(Refusal::of(error))
}

fn lies() -> Vec<(&'static str, Lie)> {
    let frames = |change: fn(&mut ChunkId, &mut u8, &mut u16, &mut Vec<u8>)| -> Lie {
        Box::new(move |message, body| {
            if let Message::Frame { id, codec, raw_blocks } = message {
                change(id, codec, raw_blocks, body);
            }
        })
    };
    let places = |change: fn(&mut Vec<imgstore::ops::source::Found>)| -> Lie {
        Box::new(move |message, _| {
            if let Message::Located(found) = message {
                change(found);
            }
        })
    };
    vec![
        ("another snapshot", lie_in_offers(|offer| offer.snapshots[0].id = SnapshotId::from_random(9))),
        ("no snapshot", lie_in_offers(|offer| offer.snapshots.clear())),
        ("a snapshot twice", lie_in_offers(|offer| offer.snapshots.push(offer.snapshots[0].clone()))),
        ("another length", lie_in_offers(|offer| offer.snapshots[0].volume_bytes += 4096)),
        ("an impossible length", lie_in_offers(|offer| offer.snapshots[0].volume_bytes = u64::MAX)),
        ("control characters", lie_in_offers(|offer| offer.snapshots[0].description = "\u{1b}[2J".into())),
        (
            "a thousand tags",
            lie_in_offers(|offer| {
                let tag = |n: u32| Tag { key: n.to_string(), value: String::new() };
                offer.snapshots[0].tags = (0..1000).map(tag).collect();
            }),
        ),
        ("another map's hash", lie_in_offers(|offer| offer.snapshots[0].manifest.hash = ObjectHash([3; 32]))),
        ("a shorter map", lie_in_offers(|offer| offer.snapshots[0].manifest.len = 10)),
        (
            "another map",
            Box::new(|message, body| {
                if matches!(message, Message::MapPiece { .. }) {
                    let middle = body.len() / 2;
                    body[middle] ^= 1;
                }
            }),
        ),
        (
            "a map without an end",
            Box::new(|message, _| {
                if let Message::MapPiece { is_last } = message {
                    *is_last = false;
                }
            }),
        ),
        ("no places", places(Vec::clear)),
        ("places of others", places(|found| found[0].id = ChunkId([7; 32]))),
        ("a chunk of no length", places(|found| found[0].raw_blocks = 0)),
        ("a frame with a flipped bit", frames(|_, _, _, body| body[20] ^= 1)),
        ("an empty frame", frames(|_, _, _, body| body.clear())),
        ("a frame of another chunk", frames(|id, _, _, _| id.0[0] ^= 1)),
        ("a codec that none is", frames(|_, codec, _, _| *codec = 9)),
        ("a delta that none is", frames(|_, codec, _, _| *codec = Codec::Delta.number())),
        ("a longer chunk", frames(|_, _, blocks, _| *blocks += 1)),
        ("a chunk that is too long", frames(|_, _, blocks, _| *blocks = u16::MAX)),
        ("an answer to nothing", Box::new(|message, _| *message = Message::Exit(0))),
        ("a question", Box::new(|message, _| *message = Message::Maps)),
        (
            "a dry run",
            Box::new(|message, _| {
                *message = refused(&OpsError::Rule { code: Code::DryRun, message: "all is well".into() })
            }),
        ),
        ("an interruption", Box::new(|message, _| *message = refused(&OpsError::Interrupted))),
    ]
}

#[test]
fn whatever_the_other_side_says_nothing_false_is_taken_over() {
    let pair = Pair::new();
    for (name, lie) in lies() {
        let target = region();
        let line = match name {
            // After the greeting, which has to be an honest one.
            "an answer to nothing" | "a question" | "a dry run" | "an interruption" => {
                let is_greeted = std::sync::atomic::AtomicBool::new(false);
                liar(&pair.region, move |message, body| {
                    if is_greeted.swap(true, Ordering::SeqCst) {
                        lie(message, body);
                    }
                })
            }
            _ => liar(&pair.region, lie),
        };
        let error = match pull(&line.peer(), &target, pair.first.0, &pair.caller.context()) {
            Err(error) => error,
            Ok(_) => panic!("{name} was believed"),
        };
        assert!(matches!(error.class(), Class::Damage | Class::Failed), "{name}: {error}");
        let catalog = target.catalog().unwrap();
        assert!(catalog.snapshots.is_empty() && catalog.images.is_empty(), "{name}");
        assert_clean(&target, &pair.caller);
        // And it can still be had from somebody honest.
        let line = Line::to(&pair.region, &pair.caller);
        let (copy, _) = pull(&line.peer(), &target, pair.first.0, &pair.caller.context()).unwrap();
        assert!(pair.caller.read_back(&target, copy).unwrap() == pair.first.1, "{name}");
    }
}

/// That a delta's base is elsewhere is the one thing that can be said wrongly without harm.
#[test]
fn bases_that_are_named_wrongly_cost_a_second_try_only() {
    let pair = Pair::new();
    let wrong: [fn(&mut Option<u64>); 2] = [|base| *base = None, |base| *base = base.map(|b| b ^ 1)];
    for wrong in wrong {
        let line = liar(&pair.region, move |message, _| {
            if let Message::Located(found) = message {
                found.iter_mut().for_each(|found| wrong(&mut found.base));
            }
        });
        let target = region();
        let (copy, _) = pull(&line.peer(), &target, pair.second.0, &pair.caller.context()).unwrap();
        assert!(pair.caller.read_back(&target, copy).unwrap() == pair.second.1);
        assert_clean(&target, &pair.caller);
    }
}

#[test]
fn what_is_no_protocol_ends_with_an_error_and_takes_no_memory() {
    let mut draw = Draw::new(3);
    for round in 0..200 {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut bytes: Vec<u8> = (0..draw.below(400)).map(|_| draw.next() as u8).collect();
        if round % 4 == 0 {
            // A message of 4 GiB that never comes.
            bytes.splice(..0, [255; 8]);
        }
        there.write_all(&bytes).unwrap();
        // What is too long is refused before anything of it came.
        let is_open = round % 4 == 0;
        let kept = is_open.then_some(there);
        let link = plain_link(here);
        let error = loop {
            if let Err(error) = link.receive() {
                break error;
            }
        };
        assert!(matches!(error, LinkError::Protocol { .. }) || !is_open, "{error}");
        drop(kept);
    }
}

/// A host answers what is asked of it and dies of nothing.
#[test]
fn a_host_refuses_what_is_out_of_place() {
    let pair = Pair::new();
    let id = chunk_id(&[1; 4096]);
    let (first, what) = (pair.first.0, CopyWhat::Snapshot(pair.first.0));
    let out_of_place = [
        vec![Message::Maps],
        vec![Message::Locate(vec![id])],
        vec![Message::Offer(what), Message::Maps, Message::Fetch(vec![(id, false)])],
        vec![Message::Offer(what), Message::Maps, Message::Locate(vec![id; 10_000])],
        vec![Message::Welcome(Welcome::nobody())],
        vec![Message::Hello { version: 99, create: None }],
        vec![Message::Offer(CopyWhat::Snapshot(SnapshotId::from_random(5)))],
    ];
    for messages in out_of_place {
        let line = Line::to(&pair.region, &pair.caller);
        for message in &messages {
            line.link.send(message).unwrap();
        }
        let refused = (0..1000).find_map(|_| match line.link.receive() {
            Ok((Message::Refused(refusal), _)) => Some(refusal.into_error()),
            Ok(_) => None,
            Err(error) => panic!("{messages:?}: {error}"),
        });
        assert!(refused.is_some(), "{messages:?}");
    }
    let line = Line::to(&pair.region, &pair.caller);
    line.link.send(&Message::Run(vec!["images".into()])).unwrap();
    assert!(matches!(line.link.receive().unwrap().0, Message::Output { is_error: false }));
    assert_eq!(line.link.receive().unwrap().0, Message::Exit(3));
    let answer = pull(&line.peer(), &region(), first, &pair.caller.context());
    answer.unwrap();
}

#[test]
fn an_older_or_newer_imgstore_is_told_from_this_one() {
    let (here, there) = UnixStream::pair().unwrap();
    host(there, region(), AccountId::from_random(1), false, NEVER);
    let link = plain_link(here);
    link.send(&Message::Hello { version: VERSION + 1, create: None }).unwrap();
    let Message::Refused(refusal) = link.receive().unwrap().0 else { panic!("it was greeted") };
    assert!(refusal.into_error().to_string().contains("version"));
}

#[test]
fn what_the_caller_has_pushed_is_all_that_the_other_side_can_ask_for() {
    let pair = Pair::new();
    let (here, there) = UnixStream::pair().unwrap();
    let (first, second) = (pair.first.0, pair.second.0);
    let thief = thread::spawn(move || {
        let link = plain_link(there);
        assert!(matches!(link.receive().unwrap().0, Message::Pull { .. }));
        link.send(&Message::Offer(CopyWhat::Snapshot(second))).unwrap();
        link.receive().map(|(message, _)| message)
    });
    let link = plain_link(here);
    let what = CopyWhat::Snapshot(first);
    let error = push(&link, &pair.region, what, &CopyOptions::default(), &pair.caller.context());
    assert!(matches!(error.unwrap_err(), OpsError::Protocol { .. }));
    drop(link);
    assert!(thief.join().unwrap().is_err(), "it got an answer");
}

/// What the copy does not have stays here.
#[test]
fn whom_else_something_is_shared_with_is_not_told_to_the_other_side() {
    let pair = Pair::new();
    let what = CopyWhat::Snapshot(pair.first.0);
    tag_and_share(&pair, guest().account);
    for copy_tags in [false, true] {
        let (here, there) = UnixStream::pair().unwrap();
        let host = thread::spawn(move || {
            let link = plain_link(there);
            assert!(matches!(link.receive().unwrap().0, Message::Pull { .. }));
            link.send(&Message::Offer(what)).unwrap();
            let Message::Offered(offer) = link.receive().unwrap().0 else { panic!("no offer") };
            offer.snapshots[0].clone()
        });
        let options = CopyOptions { copy_tags, ..CopyOptions::default() };
        push(&plain_link(here), &pair.region, what, &options, &pair.caller.context()).unwrap_err();
        let told = host.join().unwrap();
        assert_eq!((told.create_volume_permissions.len(), told.tags.len()), (0, usize::from(copy_tags)));
    }
}

/// Somebody who is let in as an account, and that account's means.
fn guest() -> Caller {
    Caller { account: AccountId::from_random(2), ..Caller::new(1) }
}

#[test]
fn a_guest_gets_what_its_account_may_have() {
    let pair = Pair::new();
    let guest = guest();
    let line = call(&pair.region, guest.account, true, NEVER, NEVER);
    let error = pull(&line.peer(), &region(), pair.first.0, &guest.context()).unwrap_err();
    assert_eq!(error.code(), Code::SnapshotNotFound.as_str());
    let own = guest.snapshot(&pair.region, &MemoryDisk::new(volume(100_000, 3))).unwrap().snapshot.id;
    pull(&line.peer(), &region(), own, &guest.context()).unwrap();
}

/// A guest that knows the hashes of somebody's chunks, and not their content.
#[test]
fn a_guest_gets_no_content_by_knowing_its_hash() {
    let pair = Pair::new();
    let guest = guest();
    // Its region names the chunks, and has other content for them.
    let forged = region();
    let like = guest.snapshot(&forged, &MemoryDisk::new(pair.first.1.clone())).unwrap().snapshot;
    for (is_guest, is_taken) in [(true, false), (false, true)] {
        let (here, there) = UnixStream::pair().unwrap();
        host(there, pair.region.clone(), guest.account, is_guest, NEVER);
        let link = plain_link(here);
        hello(&link);
        let options = CopyOptions::default();
        let what = CopyWhat::Snapshot(like.id);
        link.send(&Message::Pull {
            region: forged.header().id,
            name: "forged".into(),
            what,
            options,
            dry_run: false,
        })
        .unwrap();
        let mut giver = Giver::new(&forged, GivenTo::Host { what, with_tags: false });
        let taken = loop {
            match link.receive().unwrap().0 {
                Message::Pulled(_) => break true,
                Message::Refused(_) => break false,
                Message::Fetch(wanted) => {
                    // It has to bring them, and cannot.
                    for (id, _) in wanted {
                        let other = vec![9; 4096];
                        let frame = CodecPool::new().encode(&other, chunk_id(&other), 3).unwrap();
                        let head = Message::Frame { id, codec: frame.codec.number(), raw_blocks: 1 };
                        if link.send_with(&head, &frame.body).is_err() {
                            break;
                        }
                    }
                }
                Message::Planned(_) | Message::Progress(_) | Message::Note(_) => {}
                request => giver.answer(&link, &request, &guest.context()).unwrap(),
            }
        };
        assert_eq!(taken, is_taken, "guest: {is_guest}");
    }
}

/// How fast a line may be is for who has it to see to: a host does not stand still for a caller that says it, and may be gone.
#[test]
fn a_host_is_as_fast_as_it_can_whatever_the_caller_says() {
    let (pair, guest) = (Pair::new(), guest());
    let own = region();
    let what =
        CopyWhat::Snapshot(guest.snapshot(&own, &MemoryDisk::new(volume(300_000, 8))).unwrap().snapshot.id);
    let (done_in, done) = std::sync::mpsc::channel();
    let (here, there) = UnixStream::pair().unwrap();
    host(there, pair.region.clone(), guest.account, true, NEVER);
    thread::spawn(move || {
        let link = plain_link(here);
        hello(&link);
        let options = CopyOptions { bytes_per_second: Some(1), ..CopyOptions::default() };
        let (region, name) = (own.header().id, "own".into());
        link.send(&Message::Pull { region, name, what, options, dry_run: false }).unwrap();
        let mut giver = Giver::new(&own, GivenTo::Host { what, with_tags: false });
        loop {
            match link.receive().unwrap().0 {
                Message::Pulled(_) => break done_in.send(()).unwrap(),
                Message::Planned(_) | Message::Progress(_) | Message::Note(_) => {}
                request => giver.answer(&link, &request, &guest.context()).unwrap(),
            }
        }
    });
    done.recv_timeout(Duration::from_secs(100)).expect("it waits for the caller's bytes a second");
}

/// What others have is as missing for a guest as what nobody has.
#[test]
fn a_guest_cannot_tell_what_others_have() {
    let pair = Pair::new();
    let guest = guest();
    let own = region();
    let id = guest.snapshot(&own, &MemoryDisk::new(pair.first.1.clone())).unwrap().snapshot.id;
    let context = Context { dry_run: true, ..guest.context() };
    let planned = |target: &Region| {
        let line = call(target, guest.account, true, NEVER, NEVER);
        let what = CopyWhat::Snapshot(id);
        push(&line.link, &own, what, &CopyOptions::default(), &context).unwrap().planned
    };
    assert_eq!(planned(&pair.region), planned(&region()));
    // Once it has brought it, it need not bring it again.
    let line = call(&pair.region, guest.account, true, NEVER, NEVER);
    let push = |context: &Context<'_>| {
        push(&line.link, &own, CopyWhat::Snapshot(id), &CopyOptions::default(), context).unwrap()
    };
    let pulled = push(&guest.context()).pulled.unwrap();
    assert_eq!(pulled.stored_bytes, pulled.transferred_bytes, "it learns how much was there");
    assert_eq!(pulled.snapshots[0].manifest.name, NOBODYS, "it learns that there was one manifest already");
    assert_eq!(push(&context).planned.new_chunks, 0);
    assert!(guest.read_back(&pair.region, pulled.snapshots[0].id).unwrap() == pair.first.1);
    assert_clean(&pair.region, &pair.caller);
}

/// As if it brought something out of the very region that it brings it to: what is there of others' it is not told, nor may it
/// say that its own is a copy of that.
#[test]
fn a_guest_brings_nothing_in_the_name_of_the_region_itself() {
    let (pair, guest) = (Pair::new(), guest());
    for id in [pair.first.0, SnapshotId::from_random(5)] {
        let line = call(&pair.region, guest.account, true, NEVER, NEVER);
        let (region, what) = (pair.region.header().id, CopyWhat::Snapshot(id));
        let (name, options) = ("local".into(), CopyOptions::default());
        line.link.send(&Message::Pull { region, name, what, options, dry_run: false }).unwrap();
        let Message::Refused(refusal) = line.link.receive().unwrap().0 else {
            panic!("it was asked for {id}")
        };
        assert_eq!(refusal.into_error().code(), "InvalidParameterValue");
    }
}

/// The map of a snapshot that it may read is lost: its chunks are brought again.
#[test]
fn a_lost_map_does_not_end_what_guests_bring() {
    let (storage, guest, own) = (Memory::new(), guest(), region());
    let target = memory_region(&storage, &small_packs());
    let bytes = volume(300_000, 3);
    let there = guest.snapshot(&target, &MemoryDisk::new(bytes.clone())).unwrap().snapshot;
    storage.delete(&there.manifest.name.to_string()).unwrap();
    let id = guest.snapshot(&own, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    let line = call(&target, guest.account, true, NEVER, NEVER);
    let (what, options) = (CopyWhat::Snapshot(id), CopyOptions::default());
    let pulled = push(&line.link, &own, what, &options, &guest.context()).unwrap().pulled.unwrap();
    assert!(guest.read_back(&target, pulled.snapshots[0].id).unwrap() == bytes);
}

/// Neither by where its chunks are, nor by what they were stored against.
#[test]
fn a_guest_does_not_hear_where_content_is() {
    let pair = Pair::new();
    let guest = guest();
    // Its own volume is stored against the chunks of somebody else's.
    let own = edited(&pair.first.1, 9);
    let taken = guest.snapshot(&pair.region, &MemoryDisk::new(own.clone())).unwrap();
    let id = taken.snapshot.id;
    assert!(taken.ingested.stored_bytes < own.len() as u64 / 8, "there are no deltas");
    let line = call(&pair.region, guest.account, true, NEVER, NEVER);
    let (peer, context) = (line.peer(), guest.context());
    let offer = peer.offer(CopyWhat::Snapshot(id), &context).unwrap();
    assert_eq!(offer.snapshots[0].manifest.name, NOBODYS);
    let map = peer.maps(&offer, &context).unwrap().remove(0);
    let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
    let found = peer.locate(&ids, &context).unwrap();
    assert!(found.iter().all(|one| (one.pack, one.offset) == (found[0].pack, 0)));
    // Nor how much of a chunk is in one that it does not see.
    let places = pair.region.locate(&ids).unwrap();
    let hidden =
        found.iter().zip(&places).filter(|(one, (_, place))| !one.is_delta && !place.codec.is_plain());
    let lengths: Vec<(u32, u32)> =
        hidden.map(|(one, _)| (one.stored_bytes, u32::from(one.raw_blocks) * 4096)).collect();
    assert!(lengths.len() > 5 && lengths.iter().all(|(told, raw)| told == raw), "{lengths:?}");
    pull(&peer, &region(), id, &context).unwrap();
    let offered: std::collections::HashSet<ChunkId> = ids.iter().copied().collect();
    for piece in ids.chunks(100) {
        line.link.send(&Message::Fetch(piece.iter().map(|id| (*id, false)).collect())).unwrap();
        let distinct: std::collections::HashSet<&ChunkId> = piece.iter().collect();
        for _ in 0..distinct.len() {
            let (Message::Frame { codec, .. }, body) = line.link.receive().unwrap() else {
                panic!("no frame")
            };
            if codec == Codec::Delta.number() {
                let base = ChunkId(*body.first_chunk().unwrap());
                assert!(offered.contains(&base), "a guest sees that {base} is there");
            }
        }
    }
}

/// A line on which a million questions are asked at once, and one is refused.
#[test]
fn a_refusal_among_many_questions_ends_the_copy_and_not_the_line() {
    let pair = Pair::new();
    let answered = Arc::new(AtomicI64::new(0));
    let counter = answered.clone();
    let line = liar(&pair.region, move |message, _| {
        if matches!(message, Message::Located(_)) && counter.fetch_add(1, Ordering::SeqCst) == 3 {
            *message = Message::Refused(Refusal::of(&OpsError::WorkerGone));
        }
    });
    let (peer, context) = (line.peer(), pair.caller.context());
    let offer = peer.offer(CopyWhat::Snapshot(pair.first.0), &context).unwrap();
    let map = peer.maps(&offer, &context).unwrap().remove(0);
    let good = map.chunks()[0].id;
    let error = peer.locate(&vec![good; 2_000_000], &context).unwrap_err();
    assert!(matches!(error, OpsError::Peer { .. }), "{error}");
    assert!(answered.load(Ordering::SeqCst) < 200, "it went on asking");
    assert_eq!(peer.locate(&[good], &context).unwrap()[0].id, good, "the line is out of step");
    pull(&peer, &region(), pair.first.0, &context).unwrap();
}

/// What is on record with each snapshot and device is bounded by itself and in number: a record that is too long to be read
/// again would close the region to everybody.
#[test]
fn names_and_devices_without_end_are_refused() {
    let (source, target, caller) = (region(), region(), Caller::new(1));
    let image = import_disks(&source, &caller, "web", vec![volume(300_000, 1)]);
    let (what, sequence) = (CopyWhat::Image(image.id), target.catalog().unwrap().sequence);
    let line = call(&target, guest().account, true, NEVER, NEVER);
    let options = CopyOptions { source_region: "x".repeat(4097), ..CopyOptions::default() };
    let error = push(&line.link, &source, what, &options, &caller.context()).unwrap_err();
    assert!(error.to_string().contains("4096 bytes"), "{error}");
    type Change = fn(&mut imgstore::model::image::Image);
    let changes: [(Change, &str); 5] = [
        (|image| image.root_device_name = "/dev/sdz".into(), "a root device without content"),
        (|image| image.devices.extend((0..256).map(|number| ephemeral(number, 0))), "257 devices"),
        (|image| image.devices.extend((0..2).map(|number| ephemeral(number, 3))), "ephemeral3 is used"),
        (|image| ebs(image).volume_bytes = 4096, "an impossible size"),
        (|image| ebs(image).iops = Some(0), "iops is 0"),
    ];
    for (change, why) in changes {
        let line = liar(&source, lie_in_offers(move |offer| change(offer.image.as_mut().unwrap())));
        let planned = plan(&line.peer(), &target, what, &CopyOptions::default(), &caller.context());
        let error = planned.err().unwrap();
        assert!(matches!(&error, OpsError::Offer { why: told } if told.contains(why)), "{error}");
    }
    assert_eq!(target.catalog().unwrap().sequence, sequence);
}

fn ephemeral(name: usize, number: u8) -> BlockDeviceMapping {
    BlockDeviceMapping { device_name: format!("/dev/sdb{name}"), target: DeviceTarget::Ephemeral(number) }
}

fn ebs(image: &mut imgstore::model::image::Image) -> &mut imgstore::model::image::EbsBlockDevice {
    match &mut image.devices[0].target {
        DeviceTarget::Ebs(ebs) => ebs,
        DeviceTarget::Ephemeral(_) => panic!("no volume"),
    }
}

/// What came is put in quarantine at the last moment: it comes again, over the same connection.
#[test]
fn a_copy_that_loses_what_came_goes_on() {
    let pair = Pair::new();
    let (target, caller) = (region(), Caller::new(2));
    let (seen, meanwhile) = (AtomicI64::new(0), target.clone());
    let line = liar(&pair.region, move |message, _| {
        // The second time is the last question of a copy.
        if matches!(message, Message::Offered(_)) && seen.fetch_add(1, Ordering::SeqCst) == 1 {
            let packs = meanwhile.catalog().unwrap().packs.keys().copied().collect();
            let closed = meanwhile.quarantine(&packs, caller.account, caller.now_ms).unwrap();
            assert!(!closed.is_empty());
        }
    });
    let caller = Caller::new(2);
    let (copy, _) = pull(&line.peer(), &target, pair.second.0, &caller.context()).unwrap();
    assert!(caller.read_back(&target, copy).unwrap() == pair.second.1);
}

/// A copy is on its way when its source is deregistered there: of one's own it is made, of others' only if that is not known.
#[test]
fn what_is_taken_back_at_the_last_moment_is_not_copied_if_it_is_others() {
    for (is_own, is_made) in [(true, true), (false, false)] {
        let pair = Pair::new();
        let friend = guest();
        let change = PermissionChange { add: vec![Permission::All], ..Default::default() };
        share_snapshot(&pair.region, pair.first.0, &change, &pair.caller.context()).unwrap();
        let account = if is_own { pair.caller.account } else { friend.account };
        let (here, there) = UnixStream::pair().unwrap();
        host(there, pair.region.clone(), account, false, NEVER);
        let link = plain_link(here);
        let welcome = hello(&link);
        let peer = Peer::new(&link, welcome.region, &welcome.name).asking_as(welcome.account);
        let (target, said) = (region(), CopyOptions::default());
        // As whom one asks here says nothing of it.
        let context = friend.context();
        let planned = plan(&peer, &target, CopyWhat::Snapshot(pair.first.0), &said, &context).unwrap();
        delete_snapshot(&pair.region, pair.first.0, &pair.caller.context()).unwrap();
        let made = apply(&peer, &target, &planned, &said, &context);
        assert_eq!(made.is_ok(), is_made, "{:?}", made.err());
    }
}

/// Does something once when a copy begins to move content.
struct Meanwhile<F>(F);

impl<F: Fn() + Send + Sync> Progress for Meanwhile<F> {
    fn begin(&self, _: &'static str, _: u64) {
        (self.0)();
    }
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// The same of what is brought to another host.
#[test]
fn what_is_taken_back_while_it_is_brought_is_not_copied_if_it_is_others() {
    for is_own in [true, false] {
        let (pair, target, friend) = (Pair::new(), region(), guest());
        let change = PermissionChange { add: vec![Permission::All], ..Default::default() };
        share_snapshot(&pair.region, pair.first.0, &change, &pair.caller.context()).unwrap();
        let line = call(&target, AccountId::from_random(77), false, NEVER, NEVER);
        let take_back = Meanwhile(|| {
            let change = PermissionChange { remove: vec![Permission::All], ..Default::default() };
            share_snapshot(&pair.region, pair.first.0, &change, &pair.caller.context()).unwrap();
            if is_own {
                delete_snapshot(&pair.region, pair.first.0, &pair.caller.context()).unwrap();
            }
        });
        let who = if is_own { &pair.caller } else { &friend };
        let context = Context { progress: &take_back, ..who.context() };
        let what = CopyWhat::Snapshot(pair.first.0);
        let pushed = push(&line.link, &pair.region, what, &CopyOptions::default(), &context);
        match pushed {
            Ok(pushed) => assert!(is_own && pushed.pulled.is_some()),
            Err(error) => {
                assert!(!is_own && error.class() == Class::Denied, "{error}");
                assert!(target.catalog().unwrap().snapshots.is_empty());
            }
        }
    }
}

/// A guest counts on what another shows it, and that is taken back while it brings the rest: then it brings that, too.
#[test]
fn what_a_guest_may_no_longer_count_on_it_brings() {
    for is_taken_back in [false, true] {
        let (target, own, owner, guest) = (region(), region(), Caller::new(1), guest());
        let shown = volume(400_000, 31);
        let id = owner.snapshot(&target, &MemoryDisk::new(shown.clone())).unwrap().snapshot.id;
        let whom = vec![Permission::Account(guest.account)];
        let change = PermissionChange { add: whom.clone(), ..Default::default() };
        share_snapshot(&target, id, &change, &owner.context()).unwrap();
        let disk = [shown, volume(50_000, 32)].concat();
        let mine = guest.snapshot(&own, &MemoryDisk::new(disk.clone())).unwrap().snapshot.id;
        let take_back = Meanwhile(|| {
            let change = PermissionChange { remove: whom.clone(), ..Default::default() };
            if is_taken_back {
                share_snapshot(&target, id, &change, &owner.context()).unwrap();
            }
        });
        let context = Context { progress: &take_back, ..guest.context() };
        let line = call(&target, guest.account, true, NEVER, NEVER);
        let what = CopyWhat::Snapshot(mine);
        let pushed = push(&line.link, &own, what, &CopyOptions::default(), &context).unwrap();
        assert!(pushed.planned.new_chunks * 2 < pushed.planned.chunks, "{:?}", pushed.planned);
        let copy = pushed.pulled.unwrap().snapshots.remove(0).id;
        assert!(guest.read_back(&target, copy).unwrap() == disk);
        let sent = line.link.sent_bytes();
        assert_eq!(
            2 * sent > 3 * pushed.planned.transfer_bytes,
            is_taken_back,
            "{sent} {:?}",
            pushed.planned
        );
    }
}

/// A guest names block maps that no host has memory for.
#[test]
fn a_guest_brings_so_many_block_maps_at_most() {
    let pair = Pair::new();
    let line = liar(&pair.region, |message, _| {
        if let Message::Offered(offer) = message {
            offer.snapshots[0].manifest.len = 2 << 30;
        }
    });
    let target = region();
    let plan_as = |is_guest| {
        let options = CopyOptions { is_guest, ..CopyOptions::default() };
        let what = CopyWhat::Snapshot(pair.first.0);
        plan(&line.peer(), &target, what, &options, &pair.caller.context()).map(drop).unwrap_err()
    };
    let refused = plan_as(true);
    assert_eq!(refused.code(), Code::InvalidParameterValue.as_str(), "{refused}");
    assert_ne!(plan_as(false).code(), Code::InvalidParameterValue.as_str());
}

/// Of a line that died nothing is heard; of a slow one a byte now and then.
#[test]
fn a_host_does_not_wait_for_ever() {
    let patience = Duration::from_millis(1200);
    let (here, _silent) = UnixStream::pair().unwrap();
    let link = plain_link(here).giving_up_after(patience, || false);
    let started = std::time::Instant::now();
    assert!(matches!(link.receive(), Err(LinkError::Lost { .. })));
    assert!((1..20).contains(&started.elapsed().as_secs()));
    // A message of which a byte comes each second.
    let (mut slow, other) = UnixStream::pair().unwrap();
    let link = plain_link(other).giving_up_after(patience, || false);
    let (mut whole, (mut ear, mouth)) = (Vec::new(), UnixStream::pair().unwrap());
    plain_link(mouth).send(&Message::Maps).unwrap();
    ear.read_to_end(&mut whole).unwrap();
    let sender = thread::spawn(move || {
        for byte in whole.chunks(whole.len().div_ceil(4)) {
            thread::sleep(Duration::from_millis(700));
            slow.write_all(byte).unwrap();
        }
        slow
    });
    assert!(matches!(link.receive(), Ok((Message::Maps, _))));
    drop(sender.join().unwrap());
    // Nor for what is not wanted any more.
    let (here, _there) = UnixStream::pair().unwrap();
    let link = plain_link(here).giving_up_after(Duration::from_secs(3600), || true);
    assert!(matches!(link.receive(), Err(LinkError::Lost { .. })));
}

/// Whoever reads a chunk reads what it is stored against. A base that is many times as long is not taken over with a copy: who sends
/// one could make everybody who reads it pay.
#[test]
fn deltas_on_bases_that_are_many_times_as_long_are_not_copied_as_such() {
    const BLOCK: usize = 4096;
    // For a chunk of one block 20 are the most.
    for (base_blocks, stays) in [(20_u16, true), (200, false)] {
        let caller = Caller::new(2);
        let chunker = ChunkerParams {
            min_blocks: base_blocks,
            avg_blocks: base_blocks,
            max_blocks: base_blocks,
            ..ChunkerParams::DEFAULT
        };
        let options = RegionOptions { chunker, ..small_packs() };
        let [source, target] = [(); 2].map(|()| memory_region(&Memory::new(), &options));
        let mut draw = Draw::new(7);
        let base: Vec<u8> = (0..usize::from(base_blocks) * BLOCK).map(|_| draw.next() as u8).collect();
        let changed = |number: usize| {
            let mut block = base[number * BLOCK..][..BLOCK].to_vec();
            block[100..108].copy_from_slice(b"changed!");
            block
        };
        let codecs = CodecPool::new();
        let mut session = source.begin(caller.account).unwrap();
        let mut put = |raw: &[u8], frame: Frame| {
            assert_eq!(session.reserve(&[chunk_id(raw)]).unwrap(), [true]);
            session.put(chunk_id(raw), &frame).unwrap();
            session.flush().unwrap();
        };
        put(&base, codecs.encode(&base, chunk_id(&base), 3).unwrap());
        let mut disk = base.clone();
        for number in 0..10 {
            let raw = changed(number);
            let on = (chunk_id(&base), &base[..]);
            put(&raw, codecs.encode_delta(&raw, chunk_id(&raw), on, 3, BLOCK).unwrap().unwrap());
            // Between zeros it is a chunk of its own.
            disk.extend([&[0; 8 * BLOCK], &raw[..]].concat());
        }
        let taken = caller.snapshot(&source, &MemoryDisk::new(disk.clone())).unwrap();
        assert_eq!(taken.ingested.new_chunks, 0, "all was there, as it was put");
        let line = Line::to(&source, &caller);
        let (copy, _) = pull(&line.peer(), &target, taken.snapshot.id, &caller.context()).unwrap();
        assert!(caller.read_back(&target, copy).unwrap() == disk);
        let packs = target.catalog().unwrap();
        let deltas: usize = packs.packs.keys().map(|pack| target.bases_in(pack).unwrap().len()).sum();
        assert_eq!(deltas, if stays { 10 } else { 0 }, "{base_blocks}");
    }
}

/// It says that hundreds of deltas take nothing, and so they come together: what they are stored against does not.
#[test]
fn deltas_whose_bases_do_not_fit_into_memory_together_are_put_a_part_at_a_time() {
    let options = RegionOptions::named("large", AccountId::from_random(9));
    let (source, target) = (memory_region(&Memory::new(), &options), memory_region(&Memory::new(), &options));
    let caller = Caller::new(2);
    let first = volume(48 << 20, 5);
    let second = edited(&first, 6);
    let take = |region: &Region, bytes: &[u8]| {
        caller.snapshot(region, &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id
    };
    take(&target, &first);
    take(&source, &first);
    let id = take(&source, &second);
    let delivered = Arc::new(AtomicI64::new(0));
    let counter = delivered.clone();
    let line = liar(&source, move |message, _| match message {
        Message::Located(found) => {
            for delta in found.iter_mut().filter(|found| found.is_delta && found.stored_bytes < 4096) {
                (delta.stored_bytes, delta.raw_blocks) = (0, 1);
            }
        }
        Message::Frame { codec, .. } if *codec == Codec::Delta.number() => {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        _ => {}
    });
    let (copy, _) = pull(&line.peer(), &target, id, &caller.context()).unwrap();
    assert!(delivered.load(Ordering::SeqCst) > 300, "{delivered:?}");
    assert!(caller.read_back(&target, copy).unwrap() == second);
    assert_clean(&target, &caller);
}

/// The first snapshot gets a tag, and somebody may have it.
fn tag_and_share(pair: &Pair, with: AccountId) {
    let owner = pair.caller.context();
    let change = PermissionChange { add: vec![Permission::Account(with)], ..Default::default() };
    share_snapshot(&pair.region, pair.first.0, &change, &owner).unwrap();
    let tags = [Tag { key: "cost".into(), value: "9".into() }];
    tag(&pair.region, Target::Snapshot(pair.first.0), &tags, &[], &owner).unwrap();
}

/// A guest that keeps its connection.
#[test]
fn what_is_no_longer_shared_is_no_longer_given() {
    let (pair, guest) = (Pair::new(), guest());
    tag_and_share(&pair, guest.account);
    let line = call(&pair.region, guest.account, true, NEVER, NEVER);
    let (peer, what, context) = (line.peer(), CopyWhat::Snapshot(pair.first.0), guest.context());
    let options = CopyOptions::default();
    let (target, late) = (region(), region());
    let plan_of = |target| plan(&peer, target, what, &options, &context);
    let (planned, late_plan) = (plan_of(&target).unwrap(), plan_of(&late).unwrap());
    apply(&peer, &target, &planned, &options, &context).unwrap();
    let change = PermissionChange { remove: vec![Permission::Account(guest.account)], ..Default::default() };
    share_snapshot(&pair.region, pair.first.0, &change, &pair.caller.context()).unwrap();
    let error = apply(&peer, &late, &late_plan, &options, &context).unwrap_err();
    assert_eq!(error.code(), Code::SnapshotNotFound.as_str());
}

/// Watches, and wants an operation to stop when it has asked so often whether it shall.
struct Patience(AtomicI64);

impl Progress for Patience {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::SeqCst) <= 0
    }
}

/// However many snapshots a guest has, and others show it.
#[test]
fn what_a_guest_may_count_on_is_found_in_few_maps() {
    let (target, guest, other) = (region(), guest(), Caller::new(1));
    let snapshot = |caller: &Caller, seed| {
        caller.snapshot(&target, &MemoryDisk::new(volume(200_000, seed))).unwrap().snapshot
    };
    let maps = |ids: &[&SnapshotRecord]| -> Vec<BlockMap> {
        ids.iter().map(|snapshot| target.load_map(&snapshot.manifest).unwrap()).collect()
    };
    let own: Vec<SnapshotRecord> = (0..9)
        .map(|seed| {
            snapshot(&Caller { now_ms: seed, ..Caller { account: guest.account, ..Caller::new(1) } }, seed)
        })
        .collect();
    for seed in 20..29 {
        let public = snapshot(&other, seed);
        let change = PermissionChange { add: vec![Permission::All], ..Default::default() };
        share_snapshot(&target, public.id, &change, &other.context()).unwrap();
    }
    let asked = |maps: &[BlockMap]| {
        let patience = Patience(AtomicI64::new(1000));
        let context = Context { progress: &patience, ..guest.context() };
        let trusted = Trusted::of(&target, maps, &context).unwrap();
        let has_all = maps.iter().flat_map(|map| map.chunks()).all(|chunk| trusted.has(chunk.id));
        (has_all, 1000 - patience.0.load(Ordering::SeqCst))
    };
    // Once for what is there, and once for each map.
    assert_eq!(asked(&maps(&[&own[8]])), (true, 2));
    assert_eq!(asked(&maps(&[&own[7], &own[8]])), (true, 3));
    // Of what nobody has nothing is there.
    let elsewhere = region();
    let new = guest.snapshot(&elsewhere, &MemoryDisk::new(volume(200_000, 99))).unwrap().snapshot;
    assert_eq!(asked(&[elsewhere.load_map(&new.manifest).unwrap()]), (false, 1));
}

/// Somebody with whom an image is shared.
#[test]
fn tags_and_whom_else_it_is_shared_with_stay_with_the_owner() {
    let pair = Pair::new();
    let guest = guest();
    tag_and_share(&pair, guest.account);
    let owner = pair.caller.context();
    let offered = |account| {
        let line = call(&pair.region, account, account != pair.caller.account, NEVER, NEVER);
        let offer = line.peer().offer(CopyWhat::Snapshot(pair.first.0), &owner).unwrap();
        (offer.snapshots[0].tags.len(), offer.snapshots[0].create_volume_permissions.len())
    };
    assert_eq!(offered(guest.account), (0, 0));
    assert_eq!(offered(pair.caller.account), (1, 1));
}

/// A guest's copy that broke off goes on where it was, too.
#[test]
fn what_a_guest_brought_before_the_line_broke_counts() {
    let (own, target, guest) = (region(), region(), guest());
    let mut draw = Draw::new(8);
    let bytes: Vec<u8> = (0..1 << 19).flat_map(|_| draw.next().to_le_bytes()).collect();
    let id = guest.snapshot(&own, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    let what = CopyWhat::Snapshot(id);
    let line = call(&target, guest.account, true, NEVER, 2 << 20);
    push(&line.link, &own, what, &CopyOptions::default(), &guest.context()).unwrap_err();
    thread::sleep(std::time::Duration::from_millis(300));
    let line = call(&target, guest.account, true, NEVER, NEVER);
    let pushed = push(&line.link, &own, what, &CopyOptions::default(), &guest.context()).unwrap();
    let moved = pushed.pulled.unwrap().transferred_bytes;
    assert!(moved < 3_700_000, "{moved} of {} came again", bytes.len());
    // And not for another guest.
    let other = Caller { account: AccountId::from_random(3), ..Caller::new(1) };
    let theirs = region();
    let same = other.snapshot(&theirs, &MemoryDisk::new(bytes)).unwrap().snapshot.id;
    let context = Context { dry_run: true, ..other.context() };
    let line = call(&target, other.account, true, NEVER, NEVER);
    let what = CopyWhat::Snapshot(same);
    let planned = push(&line.link, &theirs, what, &CopyOptions::default(), &context).unwrap().planned;
    assert_eq!(planned.new_chunks, planned.chunks);
}

#[test]
fn a_slow_line_is_kept_as_slow_as_asked_for() {
    let (here, there) = UnixStream::pair().unwrap();
    let slow = Link::new(Box::new(here.try_clone().unwrap()), Box::new(here), Some(1 << 20)).unwrap();
    let other = plain_link(there);
    let body = vec![1; 256 << 10];
    let started = std::time::Instant::now();
    for _ in 0..4 {
        slow.send_with(&Message::Output { is_error: false }, &body).unwrap();
        other.receive().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    assert!((0.6..3.0).contains(&seconds), "1 MiB at 1 MiB/s took {seconds} s");
}
