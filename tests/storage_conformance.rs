//! The contracts of `io::storage::Storage`, run on every implementation.

mod common;

use imgstore::io::directory::{Directory, DirectoryOptions};
use imgstore::io::memory::Memory;
use imgstore::io::os::OsFiles;
use imgstore::io::sim::{Hook, SimFiles, SimOp, Verdict};
use imgstore::io::storage::{Created, Storage, StorageError, read_whole, twin_of};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs a contract on all implementations; two handles are two writers on the same objects.
fn on_each(contract: impl Fn(Arc<dyn Storage>, Arc<dyn Storage>)) {
    let memory = Memory::new();
    contract(Arc::new(memory.clone()), Arc::new(memory));

    let folder = tempfile::tempdir().unwrap();
    for options in [DirectoryOptions::default(), DirectoryOptions { map: false, ..Default::default() }] {
        let root = folder.path().join(if options.map { "mapped" } else { "read" });
        let handle = |writer: &str| Directory::new(OsFiles, &root, writer.into(), options);
        handle("aa").initialize().unwrap();
        contract(Arc::new(handle("aa")), Arc::new(handle("bb")));
    }

    let files = SimFiles::new();
    let root = Path::new("/region");
    let handle =
        |writer: &str| Directory::new(files.clone(), root, writer.into(), DirectoryOptions::default());
    handle("aa").initialize().unwrap();
    contract(Arc::new(handle("aa")), Arc::new(handle("bb")));
}

#[test]
fn an_object_is_created_once_and_whole() {
    on_each(|one, two| {
        assert_eq!(one.create("packs/aa/000001", &[b"he", b"", b"llo"]).unwrap(), Created::New);
        assert_eq!(two.create("packs/aa/000001", &[b"other"]).unwrap(), Created::Existed);
        assert_eq!(one.create("packs/aa/000001", &[b"again"]).unwrap(), Created::Existed);
        assert_eq!(read_whole(&*two, "packs/aa/000001", 100).unwrap(), b"hello");
    });
}

#[test]
fn an_object_is_made_piece_by_piece_or_given_up() {
    on_each(|one, two| {
        let pieces = |write: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            [&b"he"[..], b"", b"llo"].into_iter().try_for_each(write)
        };
        assert_eq!(one.create_from("index/aa/000001", &mut |write| pieces(write)).unwrap(), Created::New);
        assert_eq!(two.create_from("index/aa/000001", &mut |write| write(b"x")).unwrap(), Created::Existed);
        assert_eq!(read_whole(&*two, "index/aa/000001", 100).unwrap(), b"hello");
        let error = one.create_from("index/aa/000002", &mut |write| {
            write(b"half of it")?;
            Err(std::io::Error::other("no more"))
        });
        assert!(error.unwrap_err().to_string().contains("no more"));
        assert!(two.open("index/aa/000002").err().unwrap().is_not_found());
        assert!(one.list("staging").unwrap().iter().all(|left| left.len != 10), "nothing is left of it");
        assert_eq!(one.create("index/aa/000002", &[b"whole"]).unwrap(), Created::New, "and no write failed");
    });
}

#[test]
fn of_many_racing_creates_exactly_one_wins() {
    on_each(|one, two| {
        for number in 0..50 {
            let name = format!("log/{number:03}");
            let create =
                |storage: &Arc<dyn Storage>, byte: u8| storage.create(&name, &[&[byte; 100]]).unwrap();
            let (a, b) = std::thread::scope(|scope| {
                let other = scope.spawn(|| create(&two, 2));
                (create(&one, 1), other.join().unwrap())
            });
            assert_ne!(a, b, "one of two is new");
            let winner = if a == Created::New { 1 } else { 2 };
            assert_eq!(read_whole(&*one, &name, 100).unwrap(), [winner; 100]);
        }
    });
}

#[test]
fn ranges_are_read_and_ends_are_noticed() {
    on_each(|one, _| {
        one.create("manifests/aa/1", &[b"0123456789"]).unwrap();
        let object = one.open("manifests/aa/1").unwrap();
        assert_eq!(object.len(), 10);
        let mut range = [0; 4];
        object.read_at(3, &mut range).unwrap();
        assert_eq!(&range, b"3456");
        assert!(matches!(object.read_at(7, &mut range), Err(StorageError::Short { .. })));
        assert!(object.read_at(u64::MAX - 1, &mut range).is_err());
        assert_eq!(object.bytes().unwrap().as_ref(), b"0123456789");
        assert!(read_whole(&*one, "manifests/aa/1", 9).is_err(), "a limit is a limit");
    });
}

#[test]
fn only_absence_is_not_found() {
    on_each(|one, _| {
        assert!(one.open("packs/aa/2").err().unwrap().is_not_found());
        assert!(one.open("packs").err().is_some_and(|e| !matches!(e, StorageError::BadName { .. })));
    });
}

/// What stands at an object's name and is none, or keeps it out of reach, is not absence.
#[test]
fn what_is_out_of_reach_is_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let storage = Directory::new(OsFiles, folder.path(), "0".repeat(32), options);
    storage.initialize().unwrap();
    let at = |name: &str| folder.path().join("packs").join(name);
    std::fs::create_dir_all(at("aa")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("aa/1")).unwrap();
    std::os::unix::fs::symlink("2", at("aa/2")).unwrap();
    std::fs::create_dir(at("aa/3")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(at("aa/4")).status().unwrap();
    assert!(fifo.success());
    std::fs::write(at("bb"), "a file where a folder is to be").unwrap();
    for name in ["packs/aa/1", "packs/aa/2", "packs/aa/3", "packs/aa/4", "packs/bb/1"] {
        let error = storage.open(name).err().unwrap_or_else(|| panic!("{name} is no object"));
        assert!(!error.is_not_found(), "{name}: {error}");
    }
    let error = storage.list("packs/bb").unwrap_err();
    assert!(!error.is_not_found(), "{error}");
}

#[test]
fn listing_is_whole_sorted_and_by_folder() {
    on_each(|one, two| {
        for name in ["packs/b/2", "packs/a/1", "packs/b/1", "log/1"] {
            one.create(name, &[b"x"]).unwrap();
        }
        let names = |folder| two.list(folder).unwrap().into_iter().map(|l| l.name).collect::<Vec<_>>();
        assert_eq!(names("packs"), ["packs/a/1", "packs/b/1", "packs/b/2"]);
        assert_eq!(names("packs/b"), ["packs/b/1", "packs/b/2"]);
        assert_eq!(names("nothing"), [""; 0]);
        let all: BTreeSet<_> =
            names("").into_iter().filter(|n| n.starts_with("packs") || n.starts_with("log")).collect();
        assert_eq!(all.len(), 4);
        assert!(two.list("packs").unwrap().iter().all(|listed| listed.len == 1));
    });
}

#[test]
fn deleting_is_idempotent_and_open_objects_stay_readable() {
    on_each(|one, two| {
        one.create("index/a/1", &[b"abc"]).unwrap();
        let open = two.open("index/a/1").unwrap();
        one.delete("index/a/1").unwrap();
        one.delete("index/a/1").unwrap();
        assert!(two.open("index/a/1").err().unwrap().is_not_found());
        let mut bytes = [0; 3];
        open.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
    });
}

#[test]
fn names_that_could_leave_the_region_are_refused() {
    on_each(|one, _| {
        for bad in
            ["", "/", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "A", "a b", "ä"]
        {
            assert!(matches!(one.create(bad, &[b"x"]), Err(StorageError::BadName { .. })), "{bad:?}");
            assert!(matches!(one.open(bad), Err(StorageError::BadName { .. })), "{bad:?}");
            assert!(matches!(one.delete(bad), Err(StorageError::BadName { .. })), "{bad:?}");
        }
    });
}

#[test]
fn persisting_a_folder_that_is_not_there_is_fine() {
    on_each(|one, two| {
        one.persist("log/00000000000000000").unwrap();
        two.create("log/00000000000000000/1", &[b"x"]).unwrap();
        one.persist("log/00000000000000000").unwrap();
    });
}

#[test]
fn several_writers_are_admitted_at_once() {
    on_each(|one, two| {
        one.admit_writer().unwrap();
        two.admit_writer().unwrap();
        one.admit_writer().unwrap();
    });
}

#[test]
fn memory_refuses_names_that_were_used_before() {
    let memory = Memory::new();
    memory.create("log/1", &[b"x"]).unwrap();
    memory.delete("log/1").unwrap();
    assert!(memory.create("log/1", &[b"y"]).is_err());
}

#[test]
fn files_of_a_directory_are_sealed_and_private_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("r");
    let storage = Directory::new(OsFiles, &root, "aa".into(), DirectoryOptions::default());
    storage.initialize().unwrap();
    storage.create("packs/aa/1", &[b"x"]).unwrap();
    let mode = |path: &str| std::fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("packs/aa/1"), 0o400);
    for dir in ["", "packs", "packs/aa", "staging"] {
        assert_eq!(mode(dir), 0o700, "{dir}");
    }
    let left: Vec<_> = storage.list("staging").unwrap().into_iter().map(|listed| listed.name).collect();
    assert_eq!(left, RESERVES, "nothing else is left in staging");
    assert_eq!(mode("staging/reserve"), 0o400);
}

const RESERVES: [&str; 4] = ["staging/reserve", "staging/reserve1", "staging/reserve2", "staging/reserve3"];

#[test]
fn leftovers_of_dead_writers_are_removed_and_those_of_living_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let handle =
        |writer: &str| Directory::new(OsFiles, folder.path(), writer.into(), DirectoryOptions::default());
    handle("aa").initialize().unwrap();
    let [dead, living, own] = ["d", "b", "c"].map(|digit| digit.repeat(32));
    let alive = handle(&living);
    alive.create("log/1", &[b"a writer that only commits is alive, too"]).unwrap();
    let staged = |name: &str| std::fs::write(folder.path().join("staging").join(name), b"x").unwrap();
    for name in [format!("{dead}-0"), format!("{dead}-probe"), format!("{living}-0"), "notes".into()] {
        staged(&name);
    }
    std::fs::write(folder.path().join("sessions").join(&dead), b"").unwrap();
    let own_handle = handle(&own);
    own_handle.admit_writer().unwrap();
    let left = |folder| own_handle.list(folder).unwrap().into_iter().map(|l| l.name).collect::<Vec<_>>();
    let kept = [&format!("staging/{living}-0"), "staging/notes"];
    assert_eq!(left("staging"), [&kept[..], &RESERVES].concat());
    // Who lives is not gone, and who is unknown is.
    assert!(!own_handle.is_writer_gone(&living).unwrap() && !own_handle.is_writer_gone(&own).unwrap());
    assert!(own_handle.is_writer_gone(&dead).unwrap() && own_handle.is_writer_gone(&"e".repeat(32)).unwrap());
    assert_eq!(left("sessions"), [format!("sessions/{living}"), format!("sessions/{own}")]);
    drop(alive);
    assert!(own_handle.is_writer_gone(&living).unwrap());
}

#[test]
fn what_is_kept_back_stays_until_there_is_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let handle = |reserve_bytes: u64| {
        let options = DirectoryOptions { reserve_bytes, ..DirectoryOptions::default() };
        Directory::new(OsFiles, folder.path(), "a".repeat(32), options)
    };
    let reserves = || RESERVES.iter().filter(|name| folder.path().join(name).exists()).count();
    handle(2 << 20).initialize().unwrap();
    assert_eq!(std::fs::metadata(folder.path().join(RESERVES[3])).unwrap().len(), 256 << 10);
    assert!(!handle(2 << 20).admit_collector().unwrap() && reserves() == 4, "there is space");
    // More than any disk has is to be left free; but what a collection begins with can be written.
    assert!(handle(u64::MAX / 2).admit_collector().unwrap() && reserves() == 4);
    assert!(handle(u64::MAX / 2).admit_writer().is_err());
    for name in RESERVES {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert!(handle(u64::MAX / 2).admit_collector().unwrap() && reserves() == 0);
    handle(2 << 20).admit_collector().unwrap();
    assert_eq!(reserves(), 4, "whoever finds space again keeps some");
}

#[test]
fn a_directory_with_other_things_in_it_does_not_become_a_region() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("staging")).unwrap();
    std::fs::write(folder.path().join("staging/build-1.bin"), b"precious").unwrap();
    std::fs::write(folder.path().join("notes.txt"), b"precious").unwrap();
    let storage = Directory::new(OsFiles, folder.path(), "aa".into(), DirectoryOptions::default());
    let error = storage.initialize().unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(folder.path().join("staging/build-1.bin").exists());
}

#[test]
fn a_fresh_mount_becomes_a_region_and_a_region_without_its_file_does_not() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    let storage = || Directory::new(OsFiles, folder.path(), "aa".into(), DirectoryOptions::default());
    storage().initialize().unwrap();
    storage().create("log/1", &[b"x"]).unwrap();
    let error = storage().initialize().unwrap_err();
    assert!(error.to_string().contains("imgstore repair"), "{error}");
    storage().create("region", &[b"x"]).unwrap();
    storage().initialize().unwrap();
}

#[test]
fn damage_is_replaced_whole_and_twins_are_second_copies() {
    on_each(|one, two| {
        one.create("log/000001", &[b"dama", b"ged"]).unwrap();
        two.restore("log/000001", b"whole").unwrap();
        assert_eq!(read_whole(&*one, "log/000001", 100).unwrap(), b"whole");
        // What is gone comes back, in a folder that is gone, too.
        two.restore("lists/aa/000001", b"back").unwrap();
        assert_eq!(read_whole(&*one, "lists/aa/000001", 100).unwrap(), b"back");
        assert!(one.restore("../log", b"no").is_err());
        // A storage may leave none.
        one.leave_twin("log/000001", &[b"who", b"le"]);
        two.leave_twin("log/000001", &[b"another"]);
        match read_whole(&*two, &twin_of("log/000001"), 100) {
            Ok(bytes) => assert_eq!(bytes, b"whole", "the first one stays"),
            Err(error) => assert!(error.is_not_found(), "{error}"),
        }
        let names: Vec<String> = one.list("").unwrap().into_iter().map(|listed| listed.name).collect();
        assert!(
            names.iter().all(|name| !name.contains("staging/aa") && !name.contains("staging/bb")),
            "{names:?}"
        );
    });
}

/// Of a write that found the storage full is said what is known, and no more.
#[test]
fn a_full_storage_is_told_as_the_system_tells_it() {
    for (kind, expected) in [
        (std::io::ErrorKind::StorageFull, "no storage space"),
        (std::io::ErrorKind::QuotaExceeded, "quota exceeded"),
    ] {
        let (files, root) = (SimFiles::new(), Path::new("/region"));
        let options = DirectoryOptions::default();
        Directory::new(files.clone(), root, "aa".into(), options).initialize().unwrap();
        let full: Hook = Arc::new(move |op| match op {
            SimOp::Write(..) => Verdict::Fail(kind),
            _ => Verdict::Proceed,
        });
        let storage = Directory::new(files.with_hook(full), root, "bb".into(), options);
        let error = storage.create("packs/000001", &[b"x"]).unwrap_err();
        let told = error.to_string();
        assert!(error.is_no_space() && told.starts_with("write packs/000001: "), "{told}");
        assert!(
            told.contains(expected) && told.contains("imgstore gc") && !told.contains("needed"),
            "{told}"
        );
    }
}

/// Of a name that could not be given it is said whether that is sure.
#[test]
fn an_answer_that_is_lost_is_no_refusal() {
    use std::io::ErrorKind::{Other, PermissionDenied, StorageFull, TimedOut};
    let verdicts = [
        (Verdict::FailAfter(TimedOut), true, true),
        (Verdict::FailAfter(Other), true, true),
        (Verdict::Fail(Other), false, false),
        (Verdict::Fail(PermissionDenied), false, false),
        (Verdict::Fail(StorageFull), false, false),
    ];
    for (verdict, is_unknown, is_there) in verdicts {
        let (files, root) = (SimFiles::new(), Path::new("/region"));
        let options = DirectoryOptions::default();
        Directory::new(files.clone(), root, "aa".into(), options).initialize().unwrap();
        let hook: Hook = Arc::new(move |op| match op {
            SimOp::Rename(..) => verdict,
            _ => Verdict::Proceed,
        });
        let storage = Directory::new(files.with_hook(hook), root, "bb".into(), options);
        let error = storage.create("log/000001", &[b"x"]).unwrap_err();
        assert_eq!(error.is_unknown_outcome(), is_unknown, "{verdict:?}");
        assert_eq!(storage.open("log/000001").is_ok(), is_there, "{verdict:?}");
        let again = storage.create("log/000002", &[b"x"]).unwrap_err();
        assert!(matches!(again, StorageError::Latched { .. }), "{verdict:?}");
        // Whoever met the first failure may have told nobody.
        assert!(again.to_string().contains("rename log/000001"), "{again}");
        assert_eq!(again.is_no_space(), matches!(verdict, Verdict::Fail(StorageFull)), "{again}");
    }
}

/// Where this user may have no more, though the disk has space: what was kept back is given up all the same.
#[test]
fn a_collection_has_something_to_begin_with_at_a_quota() {
    for kind in [std::io::ErrorKind::QuotaExceeded, std::io::ErrorKind::StorageFull] {
        let (files, root) = (SimFiles::new(), Path::new("/region"));
        let options = DirectoryOptions { reserve_bytes: 1 << 20, ..DirectoryOptions::default() };
        Directory::new(files.clone(), root, "aa".into(), options).initialize().unwrap();
        let reserves = |files: &SimFiles| {
            let all = files.all_files().into_iter();
            all.filter(|(path, len)| path.starts_with("/region/staging") && *len == 256 << 10).count()
        };
        assert_eq!(reserves(&files), 4);
        let used = |files: &SimFiles| files.all_files().into_iter().map(|(_, len)| len).sum::<u64>();
        let quota = || -> Hook {
            let (limit, seen) = (used(&files), files.clone());
            Arc::new(move |op| match op {
                SimOp::Write(_, bytes) if used(&seen) + bytes.len() as u64 > limit => Verdict::Fail(kind),
                _ => Verdict::Proceed,
            })
        };
        // Others take what one gives back: each has one more.
        for left in (0..4).rev() {
            let storage = Directory::new(files.with_hook(quota()), root, format!("b{left}"), options);
            assert!(storage.admit_collector().unwrap(), "what can be left out is left out");
            assert_eq!(reserves(&files), left);
            assert_eq!(storage.create(&format!("log/00000{left}"), &[b"x"]).unwrap(), Created::New);
        }
        // Nothing of the trials stays.
        let staged =
            files.all_files().into_iter().filter(|(path, _)| path.starts_with("/region/staging")).count();
        assert_eq!(staged, 0);
        // Where there is room they are taken again, and one whose maker died is made anew.
        let storage = Directory::new(files.clone(), root, "cc".into(), options);
        assert!(!storage.admit_collector().unwrap());
        files.damage(Path::new("/region/staging/reserve2"), |bytes| bytes.truncate(5));
        storage.admit_writer().unwrap();
        assert_eq!(reserves(&files), 4);
        // What is longer than there is room for has more at the next try.
        let storage = Directory::new(files.with_hook(quota()), root, "dd".into(), options);
        storage.admit_collector().unwrap();
        storage.create("lists/000001", &[&[1; 300 << 10]]).unwrap_err();
        assert_eq!(reserves(&files), 2);
    }
}

/// A checkpoint or a segment that does not fit is no reason to write nothing more.
#[test]
fn a_cache_that_does_not_fit_is_left_out() {
    for kind in [std::io::ErrorKind::QuotaExceeded, std::io::ErrorKind::StorageFull] {
        let (files, root) = (SimFiles::new(), Path::new("/region"));
        let options = DirectoryOptions::default();
        Directory::new(files.clone(), root, "aa".into(), options).initialize().unwrap();
        let large: Hook = Arc::new(move |op| match op {
            SimOp::Write(_, bytes) if bytes.len() > 1000 => Verdict::Fail(kind),
            _ => Verdict::Proceed,
        });
        let storage = Directory::new(files.with_hook(large), root, "bb".into(), options);
        storage.create_from("checkpoints/000001", &mut |write| write(&[1; 2000])).unwrap_err();
        assert_eq!(storage.create("log/000001", &[b"x"]).unwrap(), Created::New);
    }
}

#[test]
fn a_twin_that_cannot_be_left_is_no_failure() {
    let files = SimFiles::new();
    let root = Path::new("/region");
    let options = DirectoryOptions::default();
    Directory::new(files.clone(), root, "aa".into(), options).initialize().unwrap();
    let full: Hook = Arc::new(|op| match op {
        SimOp::Rename(_, to) if to.starts_with("/region/twins") => {
            Verdict::Fail(std::io::ErrorKind::StorageFull)
        }
        _ => Verdict::Proceed,
    });
    let storage = Directory::new(files.with_hook(full), root, "bb".into(), options);
    assert!(!storage.leave_twin("log/000001", &[b"x"]));
    assert!(storage.open(&twin_of("log/000001")).is_err());
    assert_eq!(storage.create("log/000001", &[b"x"]).unwrap(), Created::New, "the handle still writes");
    let left: Vec<_> = files
        .all_files()
        .into_iter()
        .filter(|(path, _)| path.to_string_lossy().contains("staging/bb"))
        .collect();
    assert_eq!(left, [], "nothing is left in staging");
}

/// Who tidies takes the empty folders of writers that are gone: not that of one which is about to put its first object there.
#[test]
fn a_writers_first_folder_is_not_taken() {
    let files = SimFiles::new();
    let root = Path::new("/region");
    let (options, writer) = (DirectoryOptions::default(), "b".repeat(32));
    let other = Arc::new(Directory::new(files.clone(), root, "c".repeat(32), options));
    other.initialize().unwrap();
    let (tidying, tidied) = (other.clone(), Arc::new(AtomicUsize::new(0)));
    let count = tidied.clone();
    let hook: Hook = Arc::new(move |_| {
        tidying.tidy();
        count.fetch_add(1, Ordering::Relaxed);
        Verdict::Proceed
    });
    let storage = Directory::new(files.with_hook(hook), root, writer.clone(), options);
    let name = format!("lists/{writer}/000001");
    assert_eq!(storage.create(&name, &[b"x"]).unwrap(), Created::New);
    assert!(tidied.load(Ordering::Relaxed) > 0);
    assert!(other.open(&name).is_ok());
}
