//! Who may do what to an image and its snapshot: a table, every cell of it executed. What stands in no cell as
//! allowed is denied.

mod common;

use common::{Caller, NOW_MS, Rules, code};
use imgstore::model::account::{Permission, Resource};
use imgstore::model::image::Image;
use imgstore::ops::describe::{Owner, Query, images};
use imgstore::ops::modify::{self, PermissionChange};
use imgstore::ops::{account, bin, delete, find};

/// What a caller is to the image.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Owner,
    /// The image was shared with it by name.
    Shared,
    /// The image and its snapshot were.
    SharedWhole,
    /// The image was shared with everybody.
    Public,
    /// The image and its snapshot were.
    PublicWhole,
    Stranger,
}

/// What became of the image after it was shared.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Available,
    /// Its owner's account blocks public sharing.
    Blocked,
    Disabled,
    Deprecated,
    Binned,
}

const OK: &str = "ok";
const GONE: &str = "InvalidAMIID.Unavailable";
const NO_IMAGE: &str = "InvalidAMIID.NotFound";
const NO_SNAPSHOT: &str = "InvalidSnapshot.NotFound";
const IN_USE: &str = "InvalidSnapshot.InUse";
const AUTH: &str = "AuthFailure";
const STORAGE: &str = "InvalidRequest";
const FORBIDDEN: &str = "OperationNotPermitted";
const HIDDEN: &str = "not listed";

const COLUMNS: [&str; 9] = [
    "see",
    "list",
    "launch",
    "copy",
    "share with all",
    "modify",
    "deregister",
    "read its snapshot",
    "delete its snapshot",
];

#[rustfmt::skip]
const TABLE: [(State, Who, [&str; 9]); 23] = {
    use State::{Available, Binned, Blocked, Deprecated, Disabled};
    use Who::{Owner, Public, PublicWhole, Shared, SharedWhole, Stranger};
    [
    //                          see       list    launch    copy      share      modify    deregister read         delete
    (Available,  Owner,        [OK,       OK,     OK,       OK,       OK,        OK,       OK,        OK,          IN_USE]),
    (Available,  Shared,       [OK,       OK,     OK,       STORAGE,  AUTH,      AUTH,     AUTH,      NO_SNAPSHOT, NO_SNAPSHOT]),
    (Available,  SharedWhole,  [OK,       OK,     OK,       OK,       AUTH,      AUTH,     AUTH,      OK,          AUTH]),
    (Available,  Public,       [OK,       OK,     OK,       STORAGE,  AUTH,      AUTH,     AUTH,      NO_SNAPSHOT, NO_SNAPSHOT]),
    (Available,  PublicWhole,  [OK,       OK,     OK,       OK,       AUTH,      AUTH,     AUTH,      OK,          AUTH]),
    (Available,  Stranger,     [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Blocked,    Owner,        [OK,       OK,     OK,       OK,       FORBIDDEN, OK,       OK,        OK,          IN_USE]),
    (Blocked,    Shared,       [OK,       OK,     OK,       STORAGE,  AUTH,      AUTH,     AUTH,      NO_SNAPSHOT, NO_SNAPSHOT]),
    (Blocked,    Public,       [OK,       OK,     OK,       STORAGE,  AUTH,      AUTH,     AUTH,      NO_SNAPSHOT, NO_SNAPSHOT]),
    (Blocked,    Stranger,     [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Disabled,   Owner,        [OK,       HIDDEN, GONE,     GONE,     GONE,      GONE,     OK,        OK,          IN_USE]),
    (Disabled,   Shared,       [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Disabled,   SharedWhole,  [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  OK,          AUTH]),
    (Disabled,   Public,       [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Disabled,   Stranger,     [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Deprecated, Owner,        [OK,       OK,     OK,       OK,       OK,        OK,       OK,        OK,          IN_USE]),
    (Deprecated, SharedWhole,  [OK,       HIDDEN, OK,       OK,       AUTH,      AUTH,     AUTH,      OK,          AUTH]),
    (Deprecated, Public,       [OK,       HIDDEN, OK,       STORAGE,  AUTH,      AUTH,     AUTH,      NO_SNAPSHOT, NO_SNAPSHOT]),
    (Deprecated, Stranger,     [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Binned,     Owner,        [GONE,     HIDDEN, GONE,     GONE,     GONE,      GONE,     GONE,      OK,          IN_USE]),
    (Binned,     SharedWhole,  [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  OK,          AUTH]),
    (Binned,     Public,       [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    (Binned,     Stranger,     [NO_IMAGE, HIDDEN, NO_IMAGE, NO_IMAGE, NO_IMAGE,  NO_IMAGE, NO_IMAGE,  NO_SNAPSHOT, NO_SNAPSHOT]),
    ]
};

/// An image that was shared and then came into a state.
fn world(state: State, who: Who) -> (Rules, Image) {
    let rules = Rules::new();
    let image = rules.image("web");
    let friend = Permission::Account(rules.friend.account);
    match who {
        Who::Owner | Who::Stranger => rules.share(image.id, friend, true).unwrap(),
        Who::Shared => rules.share(image.id, friend, false).unwrap(),
        Who::SharedWhole => rules.share(image.id, friend, true).unwrap(),
        Who::Public => rules.share(image.id, Permission::All, false).unwrap(),
        Who::PublicWhole => rules.share(image.id, Permission::All, true).unwrap(),
    }
    let (region, context) = (&rules.region, rules.owner.context());
    match state {
        State::Available => {}
        State::Blocked => account::block_public_access(region, Resource::Image, true, &context).unwrap(),
        State::Disabled => modify::disable(region, image.id, &context).unwrap(),
        State::Deprecated => drop(modify::deprecate(region, image.id, Some(NOW_MS), &context).unwrap()),
        State::Binned => {
            bin::add_rule(region, Resource::Image, 7, &[], &context).unwrap();
            delete::deregister(region, image.id, false, &context).unwrap();
        }
    }
    (rules, image)
}

fn attempt(column: &str, rules: &Rules, image: &Image, caller: &Caller) -> Result<(), &'static str> {
    let (region, id) = (&rules.region, image.id);
    let snapshot = image.snapshot_ids().next().unwrap();
    // A little later, so that what is deprecated from now on is deprecated.
    let caller = Caller { account: caller.account, now_ms: NOW_MS + 120_000, ..Caller::new(1) };
    let context = caller.context();
    match column {
        "see" => code(find::image(&rules.catalog(), caller.account, id)),
        "list" => {
            let query = Query {
                ids: vec![],
                owner: Owner::All,
                executable_by: None,
                include_deprecated: false,
                include_disabled: false,
                now_ms: caller.now_ms,
                filters: vec![],
                results_max: None,
                next_token: None,
            };
            let catalog = rules.catalog();
            let page = images(&catalog, caller.account, &query).unwrap();
            if page.items.iter().any(|item| item.id == id) { Ok(()) } else { Err(HIDDEN) }
        }
        "launch" => code(rules.launch(id, &caller)),
        "copy" => code(rules.copy(id, "copy", &caller)),
        "share with all" => {
            let change = PermissionChange { add: vec![Permission::All], remove: vec![] };
            code(modify::share_image(region, id, &change, false, &context))
        }
        "modify" => code(modify::describe_image(region, id, "another", &context)),
        "deregister" => code(delete::deregister(region, id, true, &context)),
        "read its snapshot" => code(caller.read_back(region, snapshot)),
        "delete its snapshot" => code(delete::delete_snapshot(region, snapshot, &context)),
        other => panic!("no column is called {other}"),
    }
}

#[test]
fn every_cell_of_the_permission_table_holds() {
    let mut wrong = Vec::new();
    for (state, who, cells) in TABLE {
        for (column, expected) in COLUMNS.iter().zip(cells) {
            let (rules, image) = world(state, who);
            let caller = match who {
                Who::Owner => &rules.owner,
                Who::Stranger => &rules.stranger,
                _ => &rules.friend,
            };
            let found = attempt(column, &rules, &image, caller).err().unwrap_or(OK);
            if found != expected {
                wrong.push(format!("{state:?} {who:?}: {column}: {found} instead of {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_state_and_every_caller_is_in_the_table() {
    for state in [State::Available, State::Blocked, State::Disabled, State::Deprecated, State::Binned] {
        for who in [Who::Owner, Who::Public, Who::Stranger] {
            assert!(TABLE.iter().any(|row| (row.0, row.1) == (state, who)), "{state:?} {who:?}");
        }
    }
    for who in [Who::Shared, Who::SharedWhole, Who::PublicWhole] {
        assert!(TABLE.iter().any(|row| row.1 == who), "{who:?}");
    }
}

#[test]
fn what_was_denied_has_changed_nothing() {
    for (state, who, cells) in TABLE {
        for (column, expected) in COLUMNS.iter().zip(cells) {
            if expected == OK {
                continue;
            }
            let (rules, image) = world(state, who);
            let caller = if who == Who::Stranger { &rules.stranger } else { &rules.friend };
            let caller = if who == Who::Owner { &rules.owner } else { caller };
            let before = rules.catalog();
            let _ = attempt(column, &rules, &image, caller);
            assert_eq!(rules.catalog(), before, "{state:?} {who:?}: {column}");
            assert_eq!(std::fs::read_dir(rules.disks.path()).unwrap().count(), 0, "no disk is left");
        }
    }
}

#[test]
fn tags_and_permissions_are_their_owners_business() {
    let rules = Rules::new();
    let image = rules.image("web");
    rules.share(image.id, Permission::All, true).unwrap();
    rules.share(image.id, Permission::Account(rules.stranger.account), false).unwrap();
    let tag = imgstore::model::account::Tag { key: "team".into(), value: "secret".into() };
    modify::tag(&rules.region, modify::Target::Image(image.id), &[tag], &[], &rules.owner.context()).unwrap();
    let listed = |caller: &Caller, filter: &str, by: Option<Permission>| {
        let query = Query {
            ids: vec![],
            owner: Owner::All,
            executable_by: by,
            include_deprecated: false,
            include_disabled: false,
            now_ms: NOW_MS,
            filters: vec![imgstore::ops::filter::Filter::parse(filter).unwrap()],
            results_max: None,
            next_token: None,
        };
        images(&rules.catalog(), caller.account, &query).unwrap().items.len()
    };
    let stranger = Some(Permission::Account(rules.stranger.account));
    assert_eq!(listed(&rules.owner, "tag:team=secret", None), 1);
    assert_eq!(listed(&rules.friend, "tag:team=secret", None), 0, "others' tags are not to be guessed");
    assert_eq!(listed(&rules.friend, "tag-key=*", None), 0);
    assert_eq!(listed(&rules.owner, "name=web", stranger), 1);
    assert_eq!(listed(&rules.stranger, "name=web", stranger), 1);
    assert_eq!(listed(&rules.friend, "name=web", stranger), 0, "nor whom others share with");
}
