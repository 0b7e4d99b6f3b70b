//! Bundles: a disk as a directory of files, a manifest and numbered parts, as EC2 has them for images whose
//! root device is an instance store. docs/FORMAT.md, "Bundles", has the bytes.
//!
//! - [`manifest`]: what a bundle says of itself. Pure.
//! - [`read`]: a bundle behind [`DiskRead`](super::DiskRead).
//! - [`write`](mod@write): a bundle behind [`DiskWrite`](super::DiskWrite).

pub mod manifest;
pub mod read;
pub mod write;

pub use manifest::is_bundle_name;
pub use read::{Bundle, open_bundle};
pub use write::{BundleOptions, create_bundle};

#[cfg(test)]
mod tests {
    use super::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError, PART_BYTES, Part, encode, parse};
    use super::write::NewBundle;
    use super::*;
    use crate::io::disk::{DiskError, DiskRead, DiskWrite, Extent};
    use crate::model::ids::ObjectHash;
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    const SMALL: u64 = 4096;

    fn options(volume_bytes: u64) -> BundleOptions {
        let attributes = BTreeMap::from([("Name".to_owned(), "web \"1\"\n".to_owned())]);
        BundleOptions { name: "web".into(), attributes, volume_bytes, zstd_level: 3 }
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    fn start(dir: &Path, volume_bytes: u64) -> Box<NewBundle> {
        Box::new(NewBundle::create(dir, &options(volume_bytes), SMALL).unwrap())
    }

    /// A bundle in parts of 4096 bytes, and the path of its manifest.
    fn bundle(dir: &Path, volume: &[u8], piece: usize) -> PathBuf {
        let mut new = start(dir, volume.len() as u64);
        for (number, bytes) in volume.chunks(piece).enumerate() {
            let offset = (number * piece) as u64;
            if bytes.iter().all(|&byte| byte == 0) {
                new.zero_at(offset, bytes.len() as u64).unwrap();
            } else {
                new.write_at(offset, bytes).unwrap();
            }
        }
        new.finish().unwrap();
        dir.join("web.manifest.json")
    }

    fn read_all(bundle: &Bundle, piece: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0xff; usize::try_from(bundle.len_bytes()).unwrap()];
        for (number, buffer) in bytes.chunks_mut(piece).enumerate() {
            bundle.read_at((number * piece) as u64, buffer)?;
        }
        Ok(bytes)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entry = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(entry).collect();
        names.sort();
        names
    }

    fn why(error: DiskError) -> String {
        match error {
            DiskError::BadBundle { why, .. } => why,
            other => panic!("{other}"),
        }
    }

    fn refusal(manifest: &Path) -> String {
        why(open_bundle(manifest).err().expect("it must be refused"))
    }

    #[test]
    fn volumes_come_back() {
        let zeros = vec![0; 30_000];
        let mut holes = vec![0; 12 * 4096 + 5];
        holes[2 * 4096..2 * 4096 + 100].fill(1);
        holes[5 * 4096 - 1] = 2;
        holes[9 * 4096..11 * 4096].copy_from_slice(&noise(2 * 4096));
        let mut tail = holes.clone();
        *tail.last_mut().unwrap() = 9;
        for (volume, parts) in [
            (vec![7], 1),
            (vec![0], 0),
            (zeros, 0),
            (noise(4095), 1),
            (noise(4096), 1),
            (noise(4097), 2),
            (noise(30_001), 8),
            (holes, 4),
            (tail, 5),
        ] {
            for piece in [1000, 4096, 10_000, 1 << 20] {
                let dir = tempfile::tempdir().unwrap();
                let dir = dir.path().join("a/b");
                let bundle = open_bundle(&bundle(&dir, &volume, piece)).unwrap();
                assert_eq!(names(&dir).len(), parts + 1, "{} bytes", volume.len());
                assert_eq!((bundle.name(), bundle.attributes()), ("web", &options(1).attributes));
                assert_eq!(bundle.len_bytes(), volume.len() as u64);
                for piece in [777, 4096, 9000, 1 << 20] {
                    assert_eq!(read_all(&bundle, piece).unwrap(), volume);
                }
            }
        }
    }

    #[test]
    fn parts_of_the_real_size_come_back_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let len = PART_BYTES * 3 - 1;
        let mut new = create_bundle(dir.path(), &options(len)).unwrap();
        let bytes = noise(3000);
        new.write_at(PART_BYTES - 1500, &bytes).unwrap();
        new.zero_at(PART_BYTES * 2, 100).unwrap();
        new.write_at(len - 1, &[1]).unwrap();
        new.finish().unwrap();
        let files = ["web.manifest.json", "web.part.00000", "web.part.00001", "web.part.00002"];
        assert_eq!(names(dir.path()), files);
        for name in files {
            let metadata = fs::metadata(dir.path().join(name)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(metadata.len() < 10_000);
        }
        let bundle = open_bundle(&dir.path().join("web.manifest.json")).unwrap();
        let mut found = vec![0xff; 3002];
        bundle.read_at(PART_BYTES - 1501, &mut found).unwrap();
        assert_eq!(found, [&[0], &bytes[..], &[0]].concat());
        let mut end = [9; 2];
        bundle.read_at(len - 2, &mut end).unwrap();
        assert_eq!(end, [0, 1]);
        assert!(bundle.read_at(len - 1, &mut end).is_err());
        assert!(bundle.read_at(u64::MAX, &mut end).is_err());
    }

    #[test]
    fn extents_tell_where_no_part_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut volume = vec![0; 6 * 4096 + 10];
        volume[2 * 4096..4 * 4096].fill(1);
        let bundle = open_bundle(&bundle(dir.path(), &volume, 4096)).unwrap();
        let extent = |start, end, is_zero| Extent { start, end, is_zero };
        for (offset, expected) in [
            (0, extent(0, 2 * 4096, true)),
            (5000, extent(5000, 2 * 4096, true)),
            (2 * 4096, extent(2 * 4096, 3 * 4096, false)),
            (4 * 4096 - 1, extent(4 * 4096 - 1, 4 * 4096, false)),
            (4 * 4096, extent(4 * 4096, 6 * 4096 + 10, true)),
        ] {
            assert_eq!(bundle.extent_at(offset).unwrap(), expected);
        }
    }

    #[test]
    fn without_finish_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("new/bundle");
        let mut new = start(&inner, 20_000);
        new.write_at(0, &noise(15_000)).unwrap();
        assert_eq!(names(&inner).len(), 3);
        drop(new);
        assert!(names(dir.path()).is_empty());
        fs::write(dir.path().join("other"), "").unwrap();
        let mut new = start(dir.path(), 20_000);
        new.write_at(0, &noise(15_000)).unwrap();
        drop(new);
        assert_eq!(names(dir.path()), ["other"]);
    }

    #[test]
    fn what_exists_is_refused_and_left_alone() {
        for name in ["web.manifest.json", "web.part.00000", "web.part.99999"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), "mine").unwrap();
            let error = create_bundle(dir.path(), &options(5)).err().unwrap();
            assert!(matches!(error, DiskError::BundleExists { .. }), "{error}");
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"mine");
        }
        // What comes into being meanwhile, too.
        for name in ["web.manifest.json", "web.part.00001"] {
            let dir = tempfile::tempdir().unwrap();
            let mut new = start(dir.path(), 9000);
            fs::write(dir.path().join(name), "mine").unwrap();
            let error = new.write_at(0, &noise(9000)).and_then(|()| new.finish()).err().unwrap();
            assert!(matches!(error, DiskError::BundleExists { .. }), "{error}");
            assert_eq!(names(dir.path()), [name]);
        }
        let dir = tempfile::tempdir().unwrap();
        for other in ["web.part.1x", "web.parts", "web2.part.00000", "web.manifest.json.old"] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        start(dir.path(), 5).finish().unwrap();
    }

    #[test]
    fn a_failed_write_cannot_be_finished() {
        let dir = tempfile::tempdir().unwrap();
        type Write = fn(&mut NewBundle) -> Result<(), DiskError>;
        let writes: [Write; 5] = [
            |new| new.write_at(99, &[1]),
            |new| new.zero_at(0, 1),
            |new| new.write_at(9000, &[1]),
            |new| new.zero_at(8000, 1001),
            |new| new.write_at(u64::MAX, &[1]),
        ];
        for write in writes {
            let mut new = start(dir.path(), 9000);
            new.write_at(0, &noise(100)).unwrap();
            write(&mut new).unwrap_err();
            new.finish().unwrap_err();
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn options_that_no_bundle_can_have_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &str| BundleOptions { name: name.into(), ..options(5) };
        let tagged = |attributes| BundleOptions { attributes, ..options(5) };
        let mut bad: Vec<_> = ["", ".", "..", ".x", "a/b", "/a", "a b", "ä", "a\0"].map(named).into();
        bad.push(named(&"x".repeat(129)));
        bad.extend([0, (64 << 40) + 1, u64::MAX].map(options));
        bad.push(tagged((0..65).map(|key| (key.to_string(), String::new())).collect()));
        bad.push(tagged([("k".repeat(129), String::new())].into()));
        bad.push(tagged([(String::new(), "v".repeat(4097))].into()));
        for options in bad {
            why(create_bundle(&dir.path().join("new"), &options).err().unwrap());
            assert!(names(dir.path()).is_empty());
        }
        for name in ["a", "web-1.2_X", &"x".repeat(128)] {
            create_bundle(dir.path(), &named(name)).unwrap().finish().unwrap();
            open_bundle(&dir.path().join(format!("{name}.manifest.json"))).unwrap();
        }
    }

    fn manifest() -> Manifest {
        let part =
            |number, raw_bytes| Part { number, raw_bytes, stored_bytes: 9, blake3: ObjectHash([5; 32]) };
        let BundleOptions { name, attributes, .. } = options(5);
        let parts = vec![part(0, 4096), part(2, 4096), part(3, 10)];
        Manifest { name, volume_bytes: 3 * 4096 + 10, part_bytes: 4096, attributes, parts }
    }

    fn text() -> String {
        String::from_utf8(encode(&manifest()).unwrap()).unwrap()
    }

    /// Text with the hash that fits it.
    fn seal(text: &str) -> Vec<u8> {
        let start = &text[..text.rfind("\"blake3\":\"").unwrap() + 10];
        format!("{start}{}\"}}", blake3::hash(format!("{start}\"}}").as_bytes()).to_hex()).into_bytes()
    }

    #[test]
    fn a_manifest_has_one_spelling_and_any_change_is_noticed() {
        let text = text();
        assert_eq!(parse(text.as_bytes()), Ok(manifest()));
        assert_eq!(seal(&text), text.as_bytes());
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                assert!(parse(&bytes).is_err(), "bit {bit} of byte {at}");
            }
            assert!(parse(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        }
        for other in [format!("{text}\n"), text.replacen(':', ": ", 1), text.replace("\\n", "\\u000a")] {
            let error = parse(other.as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Changed { .. }), "{error}");
        }
    }

    #[test]
    fn each_field_is_checked_even_if_the_hash_fits() {
        let big = u64::MAX.to_string();
        let many: String = (0..65).map(|key| format!("\"{key}\":\"\",")).collect();
        let (key, value) = (format!("{{\"{}\":", "k".repeat(129)), format!(":\"{}\"}}", "v".repeat(4097)));
        let table: [(&str, &str, &str); 31] = [
            ("\"imgstore bundle\"", "\"imgstore\"", "format"),
            ("\"version\":1", "\"version\":2", "newer imgstore"),
            ("\"version\":1,", "\"version\":2,\"more\":[{}],", "newer imgstore"),
            ("\"version\":1", "\"version\":0", "newer imgstore"),
            ("\"version\":1,", "", "no manifest"),
            ("\"version\":1,", "\"version\":1,\"version\":1,", "no manifest"),
            ("\"version\":1,", "\"version\":1,\"more\":1,", "no manifest"),
            ("\"web\"", "\"../web\"", "name"),
            ("\"web\"", "\"\"", "name"),
            ("\"web\"", "\".web\"", "name"),
            ("\"volume_bytes\":12298", "\"volume_bytes\":0", "volume_bytes"),
            ("\"volume_bytes\":12298", "\"volume_bytes\":12299", "raw_bytes"),
            ("\"volume_bytes\":12298", "\"volume_bytes\":8192", "number"),
            ("\"volume_bytes\":12298", "\"volume_bytes\":70368744177665", "volume_bytes"),
            ("\"volume_bytes\":12298", "\"volume_bytes\":-1", "no manifest"),
            ("\"part_bytes\":4096", "\"part_bytes\":0", "part_bytes"),
            ("\"part_bytes\":4096", "\"part_bytes\":4097", "part_bytes"),
            ("\"part_bytes\":4096", "\"part_bytes\":8192", "raw_bytes"),
            ("\"part_bytes\":4096", "\"part_bytes\":67112960", "part_bytes"),
            ("{\"Name\":", "{\"Name\":\"\",\"Name\":", "twice"),
            ("{\"Name\":", &format!("{{{many}\"Name\":"), "too many"),
            ("{\"Name\":", &key, "key"),
            (":\"web \\\"1\\\"\\n\"}", &value, "value"),
            ("\"number\":2", "\"number\":0", "number"),
            ("\"number\":3", "\"number\":2", "number"),
            ("\"number\":3", &format!("\"number\":{big}"), "number"),
            ("\"raw_bytes\":10", &format!("\"raw_bytes\":{big}"), "raw_bytes"),
            ("\"raw_bytes\":10", "\"raw_bytes\":9", "raw_bytes"),
            ("\"stored_bytes\":9", "\"stored_bytes\":0", "stored_bytes"),
            ("\"stored_bytes\":9", "\"stored_bytes\":5185", "stored_bytes"),
            ("0505", "05", "no manifest"),
        ];
        for (from, to, expected) in table {
            let changed = text().replacen(from, to, 1);
            assert_ne!(changed, text(), "{from}");
            let error = parse(&seal(&changed)).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
        let upper = seal(&text().replace("0505", "0A0A")[..]);
        assert!(parse(&upper).is_err());
    }

    #[test]
    fn hostile_manifests_are_refused_quickly() {
        let begun = std::time::Instant::now();
        let attributes: String = (0..1_000_000).map(|key| format!("\"{key}\":\"\",")).collect();
        for bytes in [
            vec![],
            b"{}".to_vec(),
            b"null".to_vec(),
            vec![b'['; 1 << 20],
            b"{\"a\":".repeat(1 << 18),
            vec![0xff; 1 << 20],
            format!("{{\"format\":\"{}", "x".repeat(1 << 20)).into_bytes(),
            text().replace("{\"Name\"", &format!("{{{attributes}\"Name\"")).into_bytes(),
            text().replace("12298", &"9".repeat(1 << 20)).into_bytes(),
            text().replace("12298", "1e999999999").into_bytes(),
            vec![b' '; usize::try_from(MANIFEST_BYTES_MAX).unwrap() + 1],
        ] {
            let error = parse(&bytes).unwrap_err().to_string();
            assert!(error.len() < 1500, "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.manifest.json");
        for len in [0, MANIFEST_BYTES_MAX + 1, 1 << 40] {
            fs::File::create(&path).unwrap().set_len(len).unwrap();
            assert!(refusal(&path).contains("bytes, not"));
        }
        assert!(begun.elapsed().as_secs() < 20);
    }

    #[test]
    fn the_most_that_a_manifest_may_say_fits_its_limit() {
        let entry = "{\"number\":4194303,\"raw_bytes\":16777216,\"stored_bytes\":16777216,\"blake3\":\"\"},"
            .len()
            + 64;
        // A control character takes six bytes.
        let attributes = manifest::ATTRIBUTES_MAX * (6 * (128 + 4096) + 6);
        let all = manifest::PARTS_MAX * entry + attributes + 1000;
        assert!((all as u64) < MANIFEST_BYTES_MAX, "{all}");
    }

    #[test]
    fn damaged_missing_and_linked_parts_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = bundle(dir.path(), &noise(10_000), 4096);
        let part = dir.path().join("web.part.00001");
        let good = fs::read(&part).unwrap();
        for bit in [0, 40, good.len() * 4, good.len() * 8 - 1] {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&part, bytes).unwrap();
            let bundle = open_bundle(&manifest).unwrap();
            assert!(why(read_all(&bundle, 1 << 20).unwrap_err()).contains("hash"));
            bundle.read_at(0, &mut [0; 4096]).unwrap();
        }
        fs::write(&part, &good).unwrap();
        let open = open_bundle(&manifest).unwrap();
        for bytes in [&good[..good.len() - 1], &[&good[..], &[0]].concat(), &[]] {
            fs::write(&part, bytes).unwrap();
            assert!(refusal(&manifest).contains("bytes, not"));
            assert!(why(read_all(&open, 1 << 20).unwrap_err()).contains("bytes, not"));
        }
        fs::remove_file(&part).unwrap();
        assert!(refusal(&manifest).contains("missing"));
        fs::write(dir.path().join("elsewhere"), &good).unwrap();
        symlink("elsewhere", &part).unwrap();
        assert!(refusal(&manifest).contains("symbolic link"));
        assert!(why(read_all(&open, 1 << 20).unwrap_err()).contains("symbolic link"));
        fs::remove_file(&part).unwrap();
        fs::create_dir(&part).unwrap();
        assert!(refusal(&manifest).contains("no regular file"));
    }

    #[test]
    fn parts_that_are_not_one_frame_of_the_right_size_are_refused() {
        let frame = |raw: &[u8]| zstd::bulk::compress(raw, 1).unwrap();
        let raw = noise(4096);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], &frame(&raw)[..]].concat();
        let mut undeclared = Vec::new();
        zstd::stream::copy_encode(&raw[..], &mut undeclared, 1).unwrap();
        let two = [frame(&raw[..4095]), frame(&raw[4095..])].concat();
        // A frame that says 4096 bytes, and ends after its header; and one with a block that is cut off.
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 0x0f];
        let cut = [&header[..], &[1, 0, 0]].concat();
        let good = frame(&raw);
        for (stored, is_good) in [
            (good.clone(), true),
            (frame(&raw[..4095]), false),
            (frame(&noise(4097)), false),
            (skippable, false),
            (undeclared, false),
            (two, false),
            ([&good[..], &[0]].concat(), false),
            (header.to_vec(), false),
            (cut, false),
            (raw, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("web.manifest.json");
            let blake3 = ObjectHash(*blake3::hash(&stored).as_bytes());
            let part = Part { number: 0, raw_bytes: 4096, stored_bytes: stored.len() as u64, blake3 };
            let manifest = Manifest { volume_bytes: 4096, parts: vec![part], ..manifest() };
            fs::write(&path, encode(&manifest).unwrap()).unwrap();
            fs::write(dir.path().join("web.part.00000"), &stored).unwrap();
            let read = read_all(&open_bundle(&path).unwrap(), 4096);
            assert_eq!(read.is_ok(), is_good, "{:?}", read.err());
        }
    }

    #[test]
    fn a_manifest_under_another_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = bundle(dir.path(), &noise(10), 4096);
        let other = dir.path().join("db.manifest.json");
        symlink(&path, &other).unwrap();
        assert!(refusal(&other).contains("symbolic link"));
        fs::remove_file(&other).unwrap();
        fs::rename(&path, &other).unwrap();
        assert!(refusal(&other).contains("called web"));
        assert!(matches!(open_bundle(&path).err(), Some(DiskError::NotFound { .. })));
    }
}
