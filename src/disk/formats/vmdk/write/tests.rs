//! What is written is read, front to back. tests/formats_vmdk.rs asks QEMU.

use super::*;
use crate::disk::formats::Limits;
use crate::disk::formats::memory::{Draw, MemoryFile, disk, read_whole, write_in_pieces};
use crate::disk::formats::vmdk::open;
use crate::io::disk::DiskRead;
use std::sync::Arc;

fn pool() -> ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

fn created<'a>(file: &MemoryFile, bytes: u64, pool: &'a ThreadPool) -> Box<dyn DiskWrite + 'a> {
    create(Box::new(file.clone()), Path::new("x.vmdk"), bytes, pool).unwrap()
}

fn opened(file: &MemoryFile) -> impl DiskRead + use<> {
    open(Arc::new(file.clone()), Path::new("x.vmdk"), &Limits::default()).unwrap()
}

fn check_sequential(file: &MemoryFile) {
    let end = file.puts().into_iter().fold(0, |end, put| {
        assert_eq!(put.start, end);
        put.end
    });
    assert_eq!((end, end % 512), (file.len_bytes(), 0));
}

#[test]
fn what_is_written_is_read() {
    let pool = pool();
    for seed in 0..30 {
        let mut draw = Draw(seed + 100);
        let len = [1 + draw.below(5000), 65_536 * (1 + draw.below(100)), 1 + draw.below(9 << 20)]
            [seed as usize % 3];
        let mut expected = disk(len, &mut draw);
        let file = MemoryFile::default();
        let mut target = created(&file, len as u64, &pool);
        write_in_pieces(&mut *target, &expected, &mut draw);
        assert!(!file.is_closed());
        target.finish().unwrap();
        assert!(file.is_closed());
        check_sequential(&file);
        expected.resize(len.next_multiple_of(512), 0);
        assert!(read_whole(&opened(&file)) == expected, "disk {seed}");
    }
}

#[test]
fn grains_and_tables_of_zeros_are_not_there() {
    let (pool, file) = (pool(), MemoryFile::default());
    let mut target = created(&file, 62 << 40, &pool);
    let places = [4096, (32 << 20) - 4096, 96 << 20, (62 << 40) - 4096];
    let zeros = vec![0; 8 << 20];
    for at in places {
        target.write_at(at, &[5; 4096]).unwrap();
        if at == 96 << 20 {
            target.write_at(at + 4096, &zeros).unwrap();
            target.zero_at(at + (9 << 20), 1 << 40).unwrap();
        }
    }
    target.finish().unwrap();
    check_sequential(&file);
    // Head, grains, tables, directory, footer.
    assert_eq!(file.len_bytes(), 512 * (128 + 4 + 3 * 5 + 1 + (62 << 15) / 128 + 3));
    let disk = opened(&file);
    let mut data = Vec::new();
    let mut at = 0;
    while at < places[2] + (1 << 30) {
        let extent = disk.extent_at(at).unwrap();
        if !extent.is_zero {
            data.push(at);
        }
        at = extent.end;
    }
    assert_eq!(data, [0, (32 << 20) - 65_536, 96 << 20]);
    let mut found = [0; 8192];
    disk.read_at((62 << 40) - 8192, &mut found).unwrap();
    assert!(found[..4096] == [0; 4096] && found[4096..] == [5; 4096]);
}

#[test]
fn what_cannot_be_held_is_refused_and_failures_are_told() {
    let pool = pool();
    let create = |bytes| create(Box::new(MemoryFile::default()), Path::new("x"), bytes, &pool).map(drop);
    assert!(matches!(create(0), Err(DiskError::Empty { .. })));
    create(62 << 40).unwrap();
    for bytes in [(62 << 40) + 1, u64::MAX] {
        assert!(matches!(create(bytes), Err(DiskError::TooLong { limit, .. }) if limit == 62 << 40));
    }
    let mut puts = 1;
    loop {
        let file = MemoryFile::failing_after(puts);
        let mut target = created(&file, 200 << 16, &pool);
        let _ = (0..4).try_for_each(|at| target.write_at((at * 50) << 16, &vec![7; 40 << 16]));
        let finished = target.finish();
        assert_eq!(file.is_closed(), finished.is_ok());
        if finished.is_ok() {
            break;
        }
        puts += 1;
    }
    assert!(puts > 160);
}

#[test]
fn sectors_of_the_file_never_wrap() {
    let file = MemoryFile::default();
    let stream = |position| Stream { file: Box::new(file.clone()), path: "x".into(), position };
    assert_eq!(stream((2 << 40) - 512).sector().unwrap(), u32::MAX);
    let error = stream(2 << 40).sector().unwrap_err();
    assert!(error.to_string().contains("at most 2 TiB"), "{error}");
    let pool = pool();
    let mut content = Content {
        stream: stream((2 << 40) - 512),
        squeezers: Squeezers::new(&pool),
        table: [0; TABLE_BYTES],
        table_index: None,
        directory: Vec::new(),
    };
    let bytes = vec![1; UNIT_BYTES];
    let unit = |number| Unit { number, bytes: &bytes };
    content.put(&[unit(0)]).unwrap();
    assert!(content.put(&[unit(1)]).is_err());
    assert!(content.close(1 << 20).is_err());
}
