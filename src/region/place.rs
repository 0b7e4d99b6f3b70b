//! Where disks are that a region has on record: by themselves, or from the region's own directory on.
//!
//! A home that is moved or copied takes its regions and the disks in it along. What is on record by where it is to the
//! region's directory is then found in the new place, and a copy's disks are never taken for those of the original.

use super::Region;
use std::path::{Component, Path, PathBuf};

/// What a region's handle knows of where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The region's directory, absolute.
    directory: PathBuf,
    /// The folder around it that is moved and copied as a whole, if there is one.
    home: Option<PathBuf>,
}

impl Place {
    pub(super) fn new(directory: &Path) -> Option<Self> {
        let directory = std::path::absolute(directory).ok()?;
        Some(Self { directory, home: None })
    }

    /// In a home, if it is there.
    fn in_home(self, home: &Path) -> Self {
        let home = Some(home).filter(|home| is_plain(home) && is_plain(&self.directory));
        let home = home.filter(|home| self.directory.starts_with(home)).map(Path::to_owned);
        Self { home, ..self }
    }

    /// How a path is put on record.
    fn to_record(&self, path: &Path) -> PathBuf {
        let inside = |path: &Path| Some(path.strip_prefix(self.home.as_ref()?).ok()?.to_owned());
        match (inside(path), inside(&self.directory)) {
            (Some(to), Some(from)) if is_plain(path) => {
                let up = from.components().map(|_| Component::ParentDir);
                up.chain(to.components()).collect()
            }
            _ => path.to_owned(),
        }
    }

    /// Where that is now. By the names alone: what the directory is linked to has nothing to do with it.
    fn of_record(&self, path: &Path) -> PathBuf {
        let mut found = self.directory.clone();
        for part in path.components() {
            match part {
                Component::ParentDir => drop(found.pop()),
                // An absolute one begins anew.
                part => found.push(part),
            }
        }
        found
    }
}

/// Whether a path says where something is by its names alone.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

impl Region {
    /// Tells the region of the folder that is moved and copied as a whole, with the region in it: disks in there are put on
    /// record by where they are to the region's directory. Without effect on a region that is elsewhere.
    pub fn note_home(&self, home: &Path) {
        let mut place = self.place();
        *place = place.take().map(|place| place.in_home(home));
    }

    /// How a disk file or folder, an absolute path, is put on record.
    pub fn path_to_record(&self, path: &Path) -> PathBuf {
        self.place().as_ref().map_or_else(|| path.to_owned(), |place| place.to_record(path))
    }

    /// Where a disk file or folder is that is on record so.
    pub fn path_of_record(&self, recorded: &str) -> PathBuf {
        let recorded = Path::new(recorded);
        match &*self.place() {
            Some(place) if recorded.is_relative() => place.of_record(recorded),
            _ => recorded.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Place;
    use std::path::Path;

    fn place(directory: &str, home: &str) -> Place {
        Place::new(Path::new(directory)).unwrap().in_home(Path::new(home))
    }

    #[test]
    fn what_is_in_the_home_moves_along() {
        let disk = Path::new("/home/a/.imgstore/instances/i-1/root.raw");
        let recorded = place("/home/a/.imgstore/regions/default", "/home/a/.imgstore").to_record(disk);
        assert_eq!(recorded, Path::new("../../instances/i-1/root.raw"));
        let moved = place("/srv/copy/regions/default", "/srv/copy");
        assert_eq!(moved.of_record(&recorded), Path::new("/srv/copy/instances/i-1/root.raw"));
    }

    #[test]
    fn what_is_elsewhere_stays_where_it_is() {
        for (directory, home, disk) in [
            ("/home/a/regions/default", "/home/a", "/vms/i-1"),
            ("/home/a/regions/default", "/home/a", "/home/ab/i-1"),
            ("/home/a/regions/default", "/home/a", "/home/a/../b/i-1"),
            ("/srv/region", "/home/a", "/home/a/instances/i-1"),
            ("/home/a/../b/region", "/home/a", "/home/a/instances/i-1"),
        ] {
            let place = place(directory, home);
            assert_eq!(place.to_record(Path::new(disk)), Path::new(disk), "{directory} {home} {disk}");
        }
    }

    #[test]
    fn without_a_home_all_paths_are_absolute() {
        let place = Place::new(Path::new("/home/a/regions/default")).unwrap();
        let disk = Path::new("/home/a/instances/i-1");
        assert_eq!(place.to_record(disk), disk);
        assert_eq!(place.of_record(Path::new("../../instances/i-1")), disk);
    }
}
