//! The home: a configuration file with the account and the regions, and the first region itself.

use super::args::Global;
use super::error::CliError;
use super::far::{Address, Far};
use super::progress;
use super::text::parse_duration;
use imgstore::disk::open::{absolute, make_dirs, physical};
use imgstore::format::region::is_region_name;
use imgstore::io::clock::random_u64;
use imgstore::io::config;
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::account::AccountId;
use imgstore::model::ids::RegionId;
use imgstore::model::region::ChunkerParams;
use imgstore::ops::context::Context;
use imgstore::ops::error::OpsError;
use imgstore::region::error::RegionError;
use imgstore::region::mend::Mended;
use imgstore::region::{REGION_FILE, Region, RegionOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CONFIG_FILE: &str = "config.toml";
const LOCK_FILE: &str = "config.lock";
const FIRST_REGION: &str = "local";

/// The configuration file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The account that commands act for.
    pub account: AccountId,
    /// The region that commands use.
    pub default_region: String,
    /// What new regions are made with.
    pub new_regions: NewRegions,
    /// How garbage is collected.
    #[serde(default)]
    pub gc: GcConfig,
    /// Known regions by name.
    pub regions: BTreeMap<String, KnownRegion>,
}

/// How garbage is collected.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcConfig {
    /// How long what was condemned stays at least, as text: 1day.
    pub grace: String,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self { grace: "1day".to_owned() }
    }
}

/// What new regions are made with: equal parameters let regions deduplicate with each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRegions {
    /// Where the chunker cuts.
    pub chunker: ChunkerParams,
    /// zstd level of new frames.
    pub zstd_level: u8,
}

/// A region that the home knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownRegion {
    /// Where it is.
    pub url: String,
    /// Of one on another host: where imgstore is there; none for where the other host's shell finds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_path: Option<String>,
    /// Of one on another host: which one it was when it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_id: Option<RegionId>,
}

impl KnownRegion {
    /// One in a directory of this host.
    fn here(url: String) -> Self {
        Self { url, remote_path: None, region_id: None }
    }
}

/// An opened home.
pub struct Home {
    path: PathBuf,
    config: Config,
    directory: DirectoryOptions,
    account: Option<AccountId>,
    region: Option<String>,
    /// What was mended of the first region before the configuration could be made anew.
    mended: Mended,
}

impl Home {
    /// Opens the home that the arguments name. If nothing is there, a command that `makes` something makes it; to any other an
    /// empty one would only hide that a disk is not mounted, or a path mistyped. Where only the configuration is not
    /// there, a command that `mends` does so before the region is opened that the new one is made for.
    pub fn open(global: &Global, makes: bool, mends: bool) -> Result<Self, CliError> {
        let path = match &global.home {
            Some(path) => path.clone(),
            None => default_path()?,
        };
        let path = absolute(&path)?;
        let directory = DirectoryOptions { map: !global.no_mmap, ..DirectoryOptions::default() };
        check_owner(&path)?;
        let (config, mended) = match read_config(&path)? {
            Some(config) => (config, Mended::default()),
            None if !makes && !is_there(&first_region(&path))? => return Err(CliError::NoHome { path }),
            None => {
                check_own_folder(&path)?;
                let (config, mended) = create(&path, directory, mends && !global.dry_run)?;
                if !global.quiet {
                    let (account, place) = (config.account, path.display());
                    progress::warn(&format!("{place}: the home of account {account}, made now"));
                }
                (config, mended)
            }
        };
        let account = global.account;
        Ok(Self { path, config, directory, account, region: global.region.clone(), mended })
    }

    /// The account that the command acts for.
    pub fn account(&self) -> AccountId {
        self.account.unwrap_or(self.config.account)
    }

    /// Whether the command line says for which account.
    pub fn is_account_given(&self) -> bool {
        self.account.is_some()
    }

    /// Whether index segments are mapped.
    pub fn maps(&self) -> bool {
        self.directory.map
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the region that the command uses.
    pub fn region_name(&self) -> &str {
        self.region.as_deref().unwrap_or(&self.config.default_region)
    }

    /// The name of the region that commands use if nothing else is said.
    pub fn default_region(&self) -> &str {
        &self.config.default_region
    }

    /// The regions that it knows.
    pub fn regions(&self) -> &BTreeMap<String, KnownRegion> {
        &self.config.regions
    }

    /// How long what a collection condemned stays at least, in milliseconds.
    pub fn gc_grace_ms(&self) -> Result<u64, CliError> {
        let grace = &self.config.gc.grace;
        parse_duration(grace)
            .map_err(|why| CliError::Usage(format!("{CONFIG_FILE}: gc.grace = {grace:?}: {why}")))
    }

    /// What is remembered of checks of the region that the command uses: of that folder, which another may be a copy of.
    pub fn checks_file(&self, region: &Region) -> Result<PathBuf, CliError> {
        let root = self.root_of(self.region_name())?;
        let root = root.canonicalize().unwrap_or(root);
        let place = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
        Ok(self.path.join("checks").join(format!("{}-{}.json", region.header().id, &place[..16])))
    }

    /// Where instances go if nothing else is said.
    pub fn instances(&self) -> PathBuf {
        self.path.join("instances")
    }

    /// Where volumes go if nothing else is said.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Opens the region that the command uses.
    pub fn open_region(&self) -> Result<Region, CliError> {
        self.open_named(self.region_name())
    }

    /// Opens a region by name.
    pub fn open_named(&self, name: &str) -> Result<Region, CliError> {
        if name.contains('/') {
            return self.open_path(name);
        }
        let known = self.known(name)?;
        let at = |error: RegionError| region_error(name, &known.url, error);
        let root = self.path.join(directory_of(&known.url)?);
        check_owner(&root)?;
        if !is_there(&root)? {
            return Err(CliError::NoFolder { name: name.to_owned(), path: root });
        }
        let region = Region::open_directory(&root, self.directory).map_err(at)?;
        region.note_home(&self.path);
        warn_of_lost_record(name, &region);
        Ok(region)
    }

    /// What the home knows of a region.
    pub fn known(&self, name: &str) -> Result<&KnownRegion, CliError> {
        let names = || self.config.regions.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let missing = || CliError::NoRegion { name: name.to_owned(), known: names() };
        self.config.regions.get(name).ok_or_else(missing)
    }

    /// A region on another host, if the name stands for one.
    pub fn far(&self, name: &str) -> Result<Option<Far>, CliError> {
        if name.contains('/') {
            return Ok(None);
        }
        let known = self.known(name)?;
        let Some(address) = Address::parse(&known.url)? else { return Ok(None) };
        let (remote_path, region_id) = (known.remote_path.clone(), known.region_id);
        Ok(Some(Far { name: name.to_owned(), address, remote_path, region_id }))
    }

    /// The directory of a region that is here, by its name or path.
    fn root_of(&self, name: &str) -> Result<PathBuf, CliError> {
        match name.contains('/') {
            true => Ok(absolute(&expand(name)?)?),
            false => Ok(self.path.join(directory_of(&self.known(name)?.url)?)),
        }
    }

    /// Opens the region in a directory that is named by its path, which a slash tells. One that begins with `~/` is under
    /// the user's own directory.
    fn open_path(&self, path: &str) -> Result<Region, CliError> {
        let root = absolute(&expand(path)?)?;
        check_owner(&root)?;
        let region = Region::open_directory(&root, self.directory);
        let region = region.map_err(|error| region_error(path, path, error))?;
        region.note_home(&self.path);
        warn_of_lost_record(path, &region);
        Ok(region)
    }

    /// As [`Home::open_named`] for a path, and makes a region there if there is none.
    pub fn open_or_create_path(&self, path: &str, name: &str, new: &NewRegions) -> Result<Region, CliError> {
        let root = absolute(&expand(path)?)?;
        check_owner(&root)?;
        open_or_create(&root, name, new, self.account(), self.directory)
            .map(|(region, _)| region)
            .map_err(|error| region_error(path, path, error))
    }

    /// What new regions are made with.
    pub fn new_regions(&self) -> &NewRegions {
        &self.config.new_regions
    }

    /// Mends the log of the region that commands are about, before it can be opened.
    pub fn mend_region(&self, context: &Context<'_>) -> Result<Mended, CliError> {
        let root = self.root_of(self.region_name())?;
        check_owner(&root)?;
        let watch = || context.check_cancelled();
        let mut mended = Region::mend_directory::<OpsError>(&root, self.directory, context.dry_run, watch)?;
        if root == first_region(&self.path) {
            mended.restored.splice(..0, self.mended.restored.iter().cloned());
            mended.twins += self.mended.twins;
        }
        Ok(mended)
    }

    /// Opens the region that commands are about, once it was mended as far as that goes.
    pub fn open_mended(&self) -> Result<Region, CliError> {
        self.open_region().map_err(|error| match error {
            CliError::Region { name, url, source: OpsError::Region(RegionError::NotARegion) } => {
                CliError::Unmendable { name, url }
            }
            CliError::Region { name, url, source } if matches!(&source, OpsError::Region(error) if error.is_damage()) => {
                CliError::StaysBroken { name, url, source }
            }
            error => error,
        })
    }

    /// Makes a region in a directory known under a name; one that is not there is made. Says whether it was.
    pub fn add_region(&mut self, name: &str, url: &str) -> Result<(Region, bool), CliError> {
        check_region_name(name)?;
        check_place(url)?;
        let mut root = absolute(&directory_of(url)?)?;
        if root.components().any(|part| part == std::path::Component::ParentDir) {
            // What is above it counts, not by which way it was said.
            root = physical(&root).unwrap_or(root);
        }
        check_owner(&root)?;
        if let Some(folder) = root.parent()
            && !is_there(folder)?
        {
            return Err(CliError::Usage(format!(
                "{}: there is no folder {}; if its disk is not mounted, mount it, else make the folder or name another",
                root.display(),
                folder.display()
            )));
        }
        let url = self.url_of(&root)?;
        let known = KnownRegion::here(url.clone());
        self.add_known(name, known, |home| {
            open_or_create(&root, name, &home.config.new_regions, home.account(), home.directory)
                .map_err(|error| region_error(name, &url, error))
        })
    }

    /// Refuses what cannot name a region, and what names one already.
    pub fn check_new_region(&self, name: &str) -> Result<(), CliError> {
        check_region_name(name)?;
        let Some(known) = self.config.regions.get(name) else { return Ok(()) };
        let why = format!("a region called {name} is known already: {}", known.url);
        Err(CliError::Usage(why))
    }

    /// Makes a region known under a name, once `open` has found it or made it.
    pub fn add_known<T>(
        &mut self,
        name: &str,
        known: KnownRegion,
        open: impl FnOnce(&Self) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let _lock = lock(&self.path)?;
        if let Some(config) = read_config(&self.path)? {
            self.config = config;
        }
        self.check_new_region(name)?;
        let opened = open(self)?;
        self.config.regions.insert(name.to_owned(), known);
        write_config(&self.path, &self.config)?;
        Ok(opened)
    }

    /// How the configuration names a directory: by its path; one inside the home relative to it, so that a home
    /// can be moved and copied.
    fn url_of(&self, root: &Path) -> Result<String, CliError> {
        let inside = root.strip_prefix(&self.path).unwrap_or(root);
        let text = inside.to_str().filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| {
            CliError::Usage(format!("{} cannot name a region: it is the home, or not UTF-8", root.display()))
        })
    }

    /// Makes a known region the one that commands use if nothing else is said.
    pub fn set_default_region(&mut self, name: &str) -> Result<(), CliError> {
        let _lock = lock(&self.path)?;
        if let Some(config) = read_config(&self.path)? {
            self.config = config;
        }
        if !self.config.regions.contains_key(name) {
            let known = self.config.regions.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(CliError::NoRegion { name: name.to_owned(), known });
        }
        name.clone_into(&mut self.config.default_region);
        write_config(&self.path, &self.config)
    }

    /// Forgets a region; its data stay.
    pub fn remove_region(&mut self, name: &str) -> Result<KnownRegion, CliError> {
        let _lock = lock(&self.path)?;
        if let Some(config) = read_config(&self.path)? {
            self.config = config;
        }
        if name == self.config.default_region {
            let why = format!(
                "{name} is the default region; make another one that first: `imgstore region default NAME`"
            );
            return Err(CliError::Usage(why));
        }
        let known = self.config.regions.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let missing = || CliError::NoRegion { name: name.to_owned(), known };
        let removed = self.config.regions.remove(name).ok_or_else(missing)?;
        write_config(&self.path, &self.config)?;
        Ok(removed)
    }
}

fn check_region_name(name: &str) -> Result<(), CliError> {
    if is_region_name(name) {
        return Ok(());
    }
    let why = format!("'{name}' cannot name a region: 1 to 63 lower-case letters, digits and dashes");
    Err(CliError::Usage(why))
}

/// The path that a text names, `~/` being the user's own directory.
fn expand(path: &str) -> Result<PathBuf, CliError> {
    let Some(rest) = path.strip_prefix("~/") else { return Ok(PathBuf::from(path)) };
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| CliError::Usage(format!("{path}: HOME is not set")))?;
    Ok(PathBuf::from(home).join(rest))
}

/// What is shown is then the state before the record.
fn warn_of_lost_record(name: &str, region: &Region) {
    if let Some(sequence) = region.lost_record() {
        progress::warn(&format!(
            "region {name}: log record {sequence} was written and is lost, so what it did is not shown; \
             `imgstore repair` brings it back"
        ));
    }
}

fn region_error(name: &str, url: &str, error: RegionError) -> CliError {
    CliError::Region { name: name.to_owned(), url: url.to_owned(), source: OpsError::from(error) }
}

/// The platform's place for a user's data.
fn default_path() -> Result<PathBuf, CliError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_DATA_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("imgstore"))
        .ok_or_else(|| CliError::Usage("neither IMGSTORE_HOME nor HOME is set; say --home DIR".into()))
}

/// Root would leave files in a user's place that the user cannot change or even read. A place that is not
/// there belongs to whoever has the folder that it would be made in.
fn check_owner(path: &Path) -> Result<(), CliError> {
    let user = config::current_user();
    let there = |path: &&Path| path.exists();
    let Some(nearest) = path.ancestors().find(there) else { return Ok(()) };
    let owner = config::owner(nearest).map_err(home_error("look at", nearest))?.unwrap_or(user);
    // Others than root are stopped by the file system where they may not write.
    let foreign = user == 0 && owner != 0;
    if foreign {
        return Err(CliError::ForeignHome { path: nearest.to_owned(), owner, user });
    }
    Ok(())
}

/// Refuses to make a home among other things: a path was mistyped, most likely.
fn check_own_folder(path: &Path) -> Result<(), CliError> {
    const EXPECTED: [&str; 5] = ["regions", "instances", "volumes", "checks", "lost+found"];
    // Of others that make it at the same time there may be the lock already.
    let is_expected = |name: &str| name.starts_with('.') || name.starts_with("config.");
    let names = config::names_in(path).map_err(home_error("look into", path))?;
    let foreign = names.into_iter().find(|name| !is_expected(name) && !EXPECTED.contains(&name.as_str()));
    let Some(foreign) = foreign else { return Ok(()) };
    let (place, foreign) = (path.display(), foreign.escape_debug());
    let why = format!(
        "{place} is no home of imgstore and holds other things ({foreign}): give it a folder of its own with --home or IMGSTORE_HOME"
    );
    Err(CliError::Usage(why))
}

/// Whether something is at a path. That it cannot be looked at does not say that nothing is.
fn is_there(path: &Path) -> Result<bool, CliError> {
    path.try_exists().map_err(home_error("look at", path))
}

/// Refuses what looks like the address of another host and is none.
fn check_place(url: &str) -> Result<(), CliError> {
    let first = url.split('/').next().unwrap_or_default();
    if url.is_empty() {
        return Err(CliError::Usage("a region is a directory's path, or ssh://[USER@]HOST/PATH".into()));
    }
    if !first.contains(':') || url.contains("://") {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "{url}: a region on another host is ssh://[USER@]HOST/PATH; for a directory of this name say ./{url}"
    )))
}

/// The directory that a URL names.
fn directory_of(url: &str) -> Result<PathBuf, CliError> {
    match url.split_once("://") {
        None => Ok(PathBuf::from(url)),
        Some(("file", path)) => Ok(PathBuf::from(path)),
        Some(("ssh", _)) => Err(CliError::Usage(format!(
            "{url} is on another host: this command is for a region here. Copy images from there with \
             `imgstore copy ID --from REGION --to ...`, or run the command there"
        ))),
        Some((scheme, _)) => Err(CliError::Usage(format!(
            "regions at {scheme}:// are not supported; a region is a directory's path, or ssh://[USER@]HOST/PATH"
        ))),
    }
}

fn home_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    move |source| CliError::Home { action, path: path.to_owned(), source }
}

fn lock(home: &Path) -> Result<impl Sized + use<>, CliError> {
    let path = home.join(LOCK_FILE);
    config::lock(&path).map_err(home_error("lock", &path))
}

/// What is wrong with a file, and where.
fn in_a_line(error: &toml::de::Error) -> String {
    let (said, why) = (error.to_string(), error.message().replace('\n', ", "));
    let place = said.lines().next().filter(|line| line.contains("line")).map(|line| format!("{line}: "));
    format!("{}{why}", place.unwrap_or_default())
}

fn read_config(home: &Path) -> Result<Option<Config>, CliError> {
    let path = home.join(CONFIG_FILE);
    let Some(text) = config::read(&path).map_err(home_error("read", &path))? else { return Ok(None) };
    let parsed: Config =
        toml::from_str(&text).map_err(|e| CliError::Config { path: path.clone(), why: in_a_line(&e) })?;
    if !parsed.new_regions.chunker.is_valid() {
        let why = "new_regions.chunker must have 1 <= min_blocks <= avg_blocks <= max_blocks <= 256".into();
        return Err(CliError::Config { path, why });
    }
    if !(1..=12).contains(&parsed.new_regions.zstd_level) {
        return Err(CliError::Config { path, why: "new_regions.zstd_level must be 1 to 12".into() });
    }
    Ok(Some(parsed))
}

fn write_config(home: &Path, config: &Config) -> Result<(), CliError> {
    let path = home.join(CONFIG_FILE);
    let text = toml::to_string_pretty(config)
        .map_err(|e| CliError::Config { path: path.clone(), why: e.to_string() })?;
    config::replace(&path, &text).map_err(home_error("write", &path))
}

/// Where the first region of a home is.
fn first_region(home: &Path) -> PathBuf {
    home.join("regions").join(FIRST_REGION)
}

/// Makes a home with an account and its first region. Several processes may do so at once. A region that is there
/// already, as it is if the configuration was lost, stays that of the account that made it.
fn create(path: &Path, directory: DirectoryOptions, mends: bool) -> Result<(Config, Mended), CliError> {
    make_dirs(path)?;
    let _lock = lock(path)?;
    if let Some(config) = read_config(path)? {
        return Ok((config, Mended::default()));
    }
    let new_regions = NewRegions { chunker: ChunkerParams::DEFAULT, zstd_level: 3 };
    let url = format!("regions/{FIRST_REGION}");
    let root = first_region(path);
    let failed = |error| region_error(FIRST_REGION, &url, error);
    let mut mended = Mended::default();
    if mends && ["log", "packs", "twins"].iter().any(|name| root.join(name).exists()) {
        check_owner(&root)?;
        mended = Region::mend_directory(&root, directory, false, || Ok(())).map_err(failed)?;
        if !root.join(REGION_FILE).exists() {
            return Err(CliError::Unmendable { name: FIRST_REGION.to_owned(), url });
        }
    }
    let account = AccountId::from_random(random_u64().map_err(home_error("draw an account for", path))?);
    let (region, _) =
        open_or_create(&root, FIRST_REGION, &new_regions, account, directory).map_err(failed)?;
    let maker = region.header().provider;
    if maker != account {
        progress::warn(&format!(
            "{}: it was missing and is made anew, for account {maker}, which made region {FIRST_REGION}; other regions \
             that it named have to be added again: `imgstore region add NAME URL`",
            path.join(CONFIG_FILE).display()
        ));
    }
    let config = Config {
        account: maker,
        default_region: FIRST_REGION.to_owned(),
        new_regions,
        gc: GcConfig::default(),
        regions: BTreeMap::from([(FIRST_REGION.to_owned(), KnownRegion::here(url))]),
    };
    write_config(path, &config)?;
    Ok((config, mended))
}

/// Opens a region, or makes it; says whether it made it.
fn open_or_create(
    root: &Path,
    name: &str,
    new: &NewRegions,
    provider: AccountId,
    directory: DirectoryOptions,
) -> Result<(Region, bool), RegionError> {
    match Region::open_directory(root, directory) {
        Err(RegionError::NotARegion) => {}
        opened => return Ok((opened?, false)),
    }
    let options = RegionOptions {
        chunker: new.chunker,
        zstd_level: new.zstd_level,
        ..RegionOptions::named(name, provider)
    };
    match Region::create_directory(root, &options, directory) {
        Err(RegionError::Exists) => Ok((Region::open_directory(root, directory)?, false)),
        made => Ok((made?, true)),
    }
}
