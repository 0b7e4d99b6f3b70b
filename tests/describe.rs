//! Lists: who sees what, in which order, by which filters, in which pages; and how fast.

mod common;

use imgstore::model::account::{AccountId, Permission, Tag};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::ImageId;
use imgstore::model::image::{DeregistrationProtection, Image, Machine};
use imgstore::model::op::Op;
use imgstore::model::words::{Architecture, ImageState, VirtualizationType};
use imgstore::ops::describe::{Owner, Query, images, latest};
use imgstore::ops::filter::Filter;
use imgstore::region::error::RegionError;
use std::sync::Arc;
use std::time::Instant;

fn account(number: u64) -> AccountId {
    AccountId::from_random(number)
}

fn image(number: u64, owner: AccountId) -> Image {
    Image {
        id: ImageId::from_random(number),
        name: format!("web-{number}"),
        description: String::new(),
        owner,
        state: ImageState::Available,
        machine: Machine {
            architecture: if number.is_multiple_of(2) { Architecture::X86_64 } else { Architecture::Arm64 },
            platform: None,
            virtualization_type: VirtualizationType::Hvm,
            boot_mode: None,
            tpm_support: None,
            ena_support: true,
            imds_support: None,
            kernel_id: None,
            ramdisk_id: None,
        },
        root_device_name: "/dev/xvda".into(),
        template: None,
        devices: vec![],
        launch_permissions: vec![],
        product_codes: vec![],
        tags: vec![Tag { key: "n".into(), value: (number % 10).to_string() }],
        // Several are made in one millisecond.
        created_ms: 1_800_000_000_000 + number / 3,
        deprecation_ms: None,
        deregistration_protection: DeregistrationProtection::Disabled,
        source: None,
        source_instance: None,
        predecessor: None,
        client_token: None,
    }
}

fn catalog(images: impl IntoIterator<Item = Image>) -> Catalog {
    let mut catalog = Catalog::default();
    Arc::make_mut(&mut catalog.images).extend(images.into_iter().map(|image| (image.id, image)));
    catalog
}

fn query(filters: &[&str]) -> Query {
    Query {
        ids: vec![],
        owner: Owner::Caller,
        executable_by: None,
        include_deprecated: false,
        include_disabled: false,
        now_ms: 1_900_000_000_000,
        filters: filters.iter().map(|text| Filter::parse(text).unwrap()).collect(),
        results_max: None,
        next_token: None,
    }
}

fn names(catalog: &Catalog, caller: AccountId, query: &Query) -> Vec<String> {
    images(catalog, caller, query).unwrap().items.iter().map(|image| image.name.clone()).collect()
}

#[test]
fn what_a_caller_may_not_see_is_in_no_list() {
    let (own, other) = (account(1), account(2));
    let shared = Image { launch_permissions: vec![Permission::Account(own)], ..image(2, other) };
    let public = Image { launch_permissions: vec![Permission::All], ..image(3, other) };
    let catalog = catalog([image(1, own), shared, public, image(4, other)]);
    let list = |owner, executable_by| names(&catalog, own, &Query { owner, executable_by, ..query(&[]) });
    assert_eq!(list(Owner::Caller, None), ["web-1"]);
    assert_eq!(list(Owner::All, None), ["web-1", "web-2", "web-3"]);
    assert_eq!(list(Owner::Account(other), None), ["web-2", "web-3"]);
    assert_eq!(list(Owner::All, Some(Permission::Account(own))), ["web-2"]);
    assert_eq!(list(Owner::All, Some(Permission::All)), ["web-3"]);
}

#[test]
fn others_deprecated_images_are_hidden_unless_asked_for() {
    let (own, other) = (account(1), account(2));
    let outdated = |number, owner, at| Image {
        deprecation_ms: Some(at),
        launch_permissions: vec![Permission::All],
        ..image(number, owner)
    };
    let (past, future) = (1_850_000_000_000, 1_950_000_000_000);
    let catalog = catalog([outdated(1, own, past), outdated(2, other, past), outdated(3, other, future)]);
    let list = |include_deprecated| {
        names(&catalog, own, &Query { owner: Owner::All, include_deprecated, ..query(&[]) })
    };
    assert_eq!(list(false), ["web-1", "web-3"]);
    assert_eq!(list(true), ["web-1", "web-2", "web-3"]);
}

#[test]
fn filters_are_anded_and_their_values_ored() {
    let own = account(1);
    let catalog = catalog((0..20).map(|number| image(number, own)));
    let list = |filters: &[&str]| names(&catalog, own, &query(filters));
    assert_eq!(list(&["name=web-3,web-5"]), ["web-3", "web-5"]);
    assert_eq!(list(&["name=web-1?", "architecture=arm64", "tag:n=1,3"]), ["web-11", "web-13"]);
    assert_eq!(list(&["tag-key=n", "name=web-7"]), ["web-7"]);
    assert_eq!(list(&["is-public=true"]), [""; 0]);
    assert_eq!(list(&["creation-date=2027-01-15T08:00:00.001Z"]).len(), 3);
    let error = images(&catalog, own, &query(&["colour=red"])).unwrap_err();
    assert_eq!(error.to_string(), "The filter 'colour' is invalid");
    let nothing = Catalog::default();
    assert!(images(&nothing, own, &query(&["colour=red"])).is_err(), "even if there is nothing to filter");
}

#[test]
fn pages_are_the_list_cut_in_pieces_whatever_is_removed_between() {
    let own = account(1);
    let mut catalog = catalog((0..25).map(|number| image(number, own)));
    let whole = names(&catalog, own, &query(&[]));
    let (mut paged, mut next_token) = (Vec::new(), None);
    loop {
        let asked = Query { results_max: Some(7), next_token, ..query(&[]) };
        let page = images(&catalog, own, &asked).unwrap();
        paged.extend(page.items.iter().map(|image| image.name.clone()));
        let last = page.items.last().unwrap().id;
        next_token = page.next_token;
        if next_token.is_none() {
            break;
        }
        // The item that the token stands on goes away.
        Arc::make_mut(&mut catalog.images).remove(&last);
    }
    assert_eq!(paged, whole);
    for bad in ["x", "1", ".", "x.ami-1"] {
        let asked = Query { next_token: Some(bad.into()), ..query(&[]) };
        assert!(bad == "." || images(&catalog, own, &asked).is_err(), "{bad}");
    }
}

#[test]
fn the_latest_is_the_newest_available_one_that_fits() {
    let own = account(1);
    let newest = Image { state: ImageState::Disabled, ..image(30, own) };
    let catalog = catalog((0..10).map(|number| image(number, own)).chain([newest]));
    let found =
        |pattern| latest(&catalog, own, &query(&[]), pattern).unwrap().map(|image| image.name.clone());
    assert_eq!(found("web-*"), Some("web-9".into()));
    assert_eq!(found("web-[0-4]"), None);
    assert_eq!(found("db-*"), None);
}

#[test]
fn a_hundred_thousand_images_are_listed_with_a_filter_in_under_a_second() {
    let own = account(1);
    let catalog = catalog((0..100_000).map(|number| image(number, own)));
    let started = Instant::now();
    let found = names(&catalog, own, &query(&["name=web-99*", "architecture=x86_64"]));
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(found.len(), 5 + 50 + 500, "even numbers that begin with 99");
    assert!(seconds < 1.0, "{seconds} s");
}

#[test]
fn a_hundred_thousand_images_are_registered_replayed_and_listed_from_a_cold_start() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let imgstore = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_imgstore"));
        let output = command.env("IMGSTORE_HOME", place).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // It makes the home.
    imgstore(&["account", "allow-public", "images"]);
    let shown = imgstore(&["account", "show", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let owner: AccountId = shown["account_id"].as_str().unwrap().parse().unwrap();
    let open = || {
        imgstore::region::Region::open_directory(&place.join("regions/local"), Default::default()).unwrap()
    };
    // In several records, so that some are replayed after the newest checkpoint and some are in it.
    let region = open();
    for part in 0..80 {
        let images = (0..1250).map(|number| image(part * 1250 + number, owner));
        let ops: Vec<_> = images.map(|image| Op::RegisterImage(Box::new(image))).collect();
        region.commit(owner, |_| Ok::<_, RegionError>((ops.clone(), ()))).unwrap();
    }
    let time = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let list = || {
        let table = imgstore(&["images", "--filter", "name=web-99*", "--filter", "architecture=arm64"]);
        assert_eq!(table.lines().count(), 1 + 500 + 50 + 5 + 1, "{}", table.lines().count());
    };
    // The best of three: the machine has other things to do.
    let cold = (0..3).map(|_| time(&list)).min().unwrap();
    let catalog = region.catalog().unwrap();
    let warm = time(&|| assert_eq!(names(&catalog, owner, &query(&["name=web-12345"])), ["web-12345"]));
    let again = time(&|| {
        let refused = open().commit(owner, |_| {
            let same =
                Op::RegisterImage(Box::new(Image { id: ImageId::from_random(1 << 40), ..image(5, owner) }));
            Ok::<_, RegionError>((vec![same], ()))
        });
        assert!(refused.is_err(), "the name is taken");
    });
    println!("cold start {cold:?}, filter {warm:?}, open and refuse a name {again:?}");
    assert!(cold.as_secs_f64() < 2.0, "{cold:?}");
    assert!(warm.as_secs_f64() < 1.0, "{warm:?}");
}
