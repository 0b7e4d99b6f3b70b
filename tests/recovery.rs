//! Disaster recovery as a story, with the program: two homes on two sites; images are copied every hour; the
//! first site burns down; everything runs from the second; the first comes back and conflicts with nothing.

mod common;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A site: a home of its own, in the folder that both share as the place of the second region.
struct Site {
    folder: PathBuf,
    home: PathBuf,
}

impl Site {
    fn new(folder: &Path, name: &str) -> Self {
        Self { folder: folder.to_owned(), home: folder.join(name) }
    }

    fn run(&self, args: &[&str]) -> Result<String, i32> {
        let output = common::clean(Command::new(env!("CARGO_BIN_EXE_imgstore")))
            .env("IMGSTORE_HOME", &self.home)
            .current_dir(&self.folder)
            .args(args)
            .args(["--quiet", "--account", "111122223333"])
            .output()
            .unwrap();
        match output.status.code() {
            Some(0) => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
            code => Err(code.unwrap()),
        }
    }

    fn ok(&self, args: &[&str]) -> String {
        self.run(args).unwrap_or_else(|code| panic!("{args:?}: exit code {code}"))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    fn images(&self, region: &str) -> Vec<Value> {
        let list = self.json(&["images", "--region", region, "--include-disabled"]);
        list["images"].as_array().unwrap().clone()
    }

    /// What a job does every hour: each image that is not there yet is copied; its id is the token.
    fn hourly_copy(&self, to: &str) -> u64 {
        let copy = |image: &Value| {
            let id = image["image_id"].as_str().unwrap();
            let copied = self.json(&["copy", id, "--to", to, "--copy-tags", "--client-token", id]);
            copied["transferred_bytes"].as_u64().unwrap()
        };
        self.images("local").iter().filter(|image| image["state"] == "available").map(copy).sum()
    }
}

/// What of an image must be the same at the other site.
fn lasting(image: &Value) -> Value {
    let keys = [
        "name",
        "description",
        "architecture",
        "virtualization_type",
        "boot_mode",
        "tpm_support",
        "ena_support",
        "imds_support",
        "root_device_name",
        "root_device_type",
        "tags",
        "owner_id",
        "product_codes",
    ];
    let device = |device: &Value| {
        ["device_name", "volume_bytes", "volume_type", "iops", "delete_on_termination", "virtual_name"]
            .map(|key| device[key].clone())
    };
    let devices: Vec<_> = image["devices"].as_array().unwrap().iter().map(device).collect();
    serde_json::json!([keys.map(|key| image[key].clone()), devices])
}

#[test]
fn everything_is_launched_from_the_second_site_after_the_first_burned_down() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let first = Site::new(place, "first");
    let (web, data) = (common::volume(3 << 20, 1), common::volume(2 << 20, 2));
    fs::write(place.join("web.raw"), &web).unwrap();
    fs::write(place.join("data.raw"), &data).unwrap();

    // The first site has a web server in two versions, a database, and an instance-store image.
    let machine = ["--boot-mode", "uefi", "--tpm-support", "v2.0", "--ena-support", "--imds-support", "v2.0"];
    let web_1 =
        first.ok(&[&["import", "web.raw", "--name", "web-1", "--tag", "env=prod"], &machine[..]].concat());
    first.ok(&["import", "web.raw", "data.raw", "--name", "db-1", "--description", "the database"]);
    first.ok(&["import", "data.raw", "--name", "cache-1", "--instance-store"]);
    first.ok(&["region", "add", "away", "away"]);
    assert!(first.hourly_copy("away") > 0);
    assert_eq!(first.hourly_copy("away"), 0, "the next hour moves nothing");

    let instance = first.ok(&["launch", &web_1, "--output", "vms"]);
    let disk = place.join("vms").join(&instance).join("xvda.raw");
    let mut written = web.clone();
    written[40_960..45_056].fill(7);
    fs::write(&disk, &written).unwrap();
    first.ok(&["stop", &instance]);
    first.ok(&["create-image", &instance, "--name", "web-2"]);
    assert!(first.hourly_copy("away") < 200_000, "what changed, no more");
    let before: Vec<_> = first.images("local").iter().map(lasting).collect();
    assert_eq!(before.len(), 4);

    // Fire: the home with its region and its instances is gone.
    fs::rename(place.join("first"), place.join("burned")).unwrap();
    fs::remove_dir_all(place.join("vms")).unwrap();

    // The second site knows nothing but the folder of the region.
    let second = Site::new(place, "second");
    second.ok(&["region", "add", "away", "away"]);
    second.ok(&["region", "default", "away"]);
    let rescued = second.images("away");
    assert_eq!(rescued.iter().map(lasting).collect::<Vec<_>>(), before, "with their attributes");
    assert!(second.json(&["verify"])["findings"].as_array().unwrap().is_empty());
    for (image, expected) in rescued.iter().zip([vec![&web], vec![&web, &data], vec![&data], vec![&written]])
    {
        let id = image["image_id"].as_str().unwrap();
        let made = &second.json(&["launch", id, "--output", "rescued"])["instances"][0];
        let disks = made["local_disks"].as_array().unwrap().iter().chain(made["volumes"].as_array().unwrap());
        let found: Vec<_> = disks.map(|disk| fs::read(disk["path"].as_str().unwrap()).unwrap()).collect();
        assert!(found.iter().eq(expected), "{}", image["name"]);
    }
    // The version before web-2 is known here, too, as the copy of web-1.
    let web_2 = rescued[3]["image_id"].as_str().unwrap();
    let ancestry = second.json(&["show", web_2])["ancestry"].clone();
    assert_eq!(ancestry[0]["image_id"], rescued[0]["image_id"], "{ancestry}");

    // Life goes on: a third version. Then the first site comes back, with what it had.
    let third = second.ok(&["launch", web_2, "--output", "rescued"]);
    second.ok(&["create-image", &third, "--name", "web-3"]);
    fs::rename(place.join("burned"), place.join("first")).unwrap();
    let counts = |site: &Site, region: &str| site.images(region).len();
    assert_eq!((counts(&first, "local"), counts(&first, "away")), (4, 5));
    assert_eq!(first.hourly_copy("away"), 0, "its job goes on and makes nothing twice");
    assert_eq!(counts(&first, "away"), 5);
    let newest = first.ok(&["images", "--region", "away", "--latest", "web-*"]);
    let back = first.ok(&["copy", &newest, "--from", "away", "--to", "local"]);
    assert_eq!(first.json(&["show", &back])["name"], "web-3", "and takes back what was made meanwhile");
    assert!(first.json(&["verify"])["findings"].as_array().unwrap().is_empty());
}
