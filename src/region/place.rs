//! Where disks are that a region has on record: by themselves, or from the region's own directory on.
//!
//! A home that is moved or copied takes its regions and the disks in it along. What is on record by where it is to the
//! region's directory is then found in the new place, and a copied home's disks are not taken for those of the original.

use super::Region;
use crate::io::outfile::physical;
use std::path::{Component, Path, PathBuf};

/// What a region's handle knows of where it is, all links followed: what is linked to is not copied with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The region's directory.
    directory: PathBuf,
    /// The folder around it that is moved and copied as a whole, if there is one.
    home: Option<PathBuf>,
}

impl Place {
    pub(super) fn new(directory: &Path) -> Option<Self> {
        Some(Self { directory: physical(directory)?, home: None })
    }

    /// In a home, if it is there.
    fn in_home(self, home: &Path) -> Self {
        let home = physical(home).filter(|home| self.directory.starts_with(home));
        Self { home, ..self }
    }

    /// How a path is put on record that is in the home.
    fn to_record(&self, path: &Path) -> Option<PathBuf> {
        let home = self.home.as_ref()?;
        let path = physical(path)?;
        let (to, from) = (path.strip_prefix(home).ok()?, self.directory.strip_prefix(home).ok()?);
        Some(from.components().map(|_| Component::ParentDir).chain(to.components()).collect())
    }

    /// Where that is now.
    fn of_record(&self, path: &Path) -> PathBuf {
        let mut found = self.directory.clone();
        for part in path.components() {
            match part {
                Component::ParentDir => drop(found.pop()),
                part => found.push(part),
            }
        }
        found
    }
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
        let inside = self.place().as_ref().and_then(|place| place.to_record(path));
        inside.unwrap_or_else(|| path.to_owned())
    }

    /// Where a disk file or folder is that is on record so. None if it is where the region's directory is, and nobody
    /// knows where that is.
    pub fn path_of_record(&self, recorded: &str) -> Option<PathBuf> {
        let recorded = Path::new(recorded);
        if recorded.is_absolute() {
            return Some(recorded.to_owned());
        }
        Some(self.place().as_ref()?.of_record(recorded))
    }
}

#[cfg(test)]
mod tests {
    use super::Place;
    use std::fs::{create_dir_all, rename};
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    fn place(directory: &Path, home: &Path) -> Place {
        Place::new(directory).unwrap().in_home(home)
    }

    /// A folder with a home that has a region.
    fn homes() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        create_dir_all(at.join("home/regions/local")).unwrap();
        (folder, at)
    }

    #[test]
    fn what_is_in_the_home_moves_along() {
        let (_folder, at) = homes();
        let (region, recorded) = ("regions/local", Path::new("../../instances/i-1/root.raw"));
        symlink(at.join("home"), at.join("link")).unwrap();
        // However the home, the region and the disk are named.
        for home in ["home", "link", "other/../home"] {
            create_dir_all(at.join("other")).unwrap();
            let place = place(&at.join("link").join(region), &at.join(home));
            for disk in ["home/instances/i-1/root.raw", "link/instances/i-1/root.raw"] {
                assert_eq!(place.to_record(&at.join(disk)).as_deref(), Some(recorded), "{home} {disk}");
            }
        }
        rename(at.join("home"), at.join("moved")).unwrap();
        let moved = place(&at.join("moved").join(region), &at.join("moved"));
        assert_eq!(moved.of_record(recorded), at.join("moved/instances/i-1/root.raw"));
        // Also for whoever names the region by a link to it.
        symlink(at.join("moved").join(region), at.join("images")).unwrap();
        let named = Place::new(&at.join("images")).unwrap();
        assert_eq!(named.of_record(recorded), at.join("moved/instances/i-1/root.raw"));
    }

    #[test]
    fn what_is_elsewhere_stays_where_it_is() {
        let (_folder, at) = homes();
        create_dir_all(at.join("large")).unwrap();
        create_dir_all(at.join("region")).unwrap();
        symlink(at.join("large"), at.join("home/linked")).unwrap();
        for (region, disk) in [
            ("home/regions/local", "vms/i-1"),
            ("home/regions/local", "home-2/i-1"),
            ("home/regions/local", "home/../vms/i-1"),
            // What a link leads to is not copied with the home.
            ("home/regions/local", "home/linked/i-1"),
            ("region", "home/instances/i-1"),
        ] {
            let place = place(&at.join(region), &at.join("home"));
            assert_eq!(place.to_record(&at.join(disk)), None, "{region} {disk}");
        }
        assert_eq!(Place::new(&at.join("home/regions/local")).unwrap().to_record(&at.join("home/i-1")), None);
    }
}
