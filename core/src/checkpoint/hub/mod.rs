//! Models and data sets named by Hub id, through the ordinary cache of Hugging Face's own tools.
//!
//! The layout is theirs (`models--ORG--NAME/{blobs,refs,snapshots}`), so what they have fetched is found here and the other way round.
//! Nothing here reads the environment: a front end fills [`HubOptions`], usually by [`HubOptions::from_lookup`].

mod choose;
mod failure;
mod options;
mod progress;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use hf_hub::progress::Progress;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, RepoType};

pub use options::HubOptions;

use super::SafetensorsSource;
use crate::error::{Error, Result};
use choose::{Listed, choose, glob_of};
use failure::{explain, offline_error};
use progress::Reporter;

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubId {
    owner: String,
    name: String,
    /// Branch, tag or commit; `None` is the default branch.
    revision: Option<String>,
}

impl HubId {
    /// Parses `org/name[@revision]`.
    fn parse(id: &str) -> Result<Self> {
        let (repo, revision) = id.split_once('@').map_or((id, None), |(repo, revision)| (repo, Some(revision)));
        let parsed = repo.split_once('/').filter(|(owner, name)| is_repo_part(owner) && is_repo_part(name));
        match parsed {
            Some((owner, name)) if revision.is_none_or(is_revision) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned(), revision: revision.map(str::to_owned) })
            }
            _ => Err(Error::input("hub::bad-id", format!("`{id}` is not a Hub id")).hint("write `org/name` or `org/name@revision`")),
        }
    }

    fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.owner, self.name, self.revision())
    }
}

/// Whether `text` has the shape of a Hub id (`org/name[@revision]`) and is no path that exists.
pub fn looks_like_hub_id(text: &str) -> bool {
    HubId::parse(text).is_ok() && !Path::new(text).exists()
}

/// The directory of the cached snapshot of model `id` (`org/name[@revision]`), fetched where it is not there yet.
///
/// Fetched are `config.json`, the safetensors weights that [`SafetensorsSource::open_dir`] reads, and small side files (tokenizer,
/// templates, code); never pickles, and no copies of the weights for other programs. `progress` gets lines for a human.
///
/// If the Hub cannot be reached and a complete snapshot is cached, that one is used and `progress` told.
///
/// # Errors
/// If the id is malformed, the repository or revision does not exist or is not open to the token, holds no safetensors weights, the
/// transfer fails, or, offline, if the snapshot is not in the cache or not complete.
pub fn resolve_model(id: &str, opts: &HubOptions, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let id = HubId::parse(id)?;
    let client = client(opts)?;
    let repo = client.model(&id.owner, &id.name);
    if opts.offline {
        return cached_snapshot(&repo, &id).map_err(|e| offline_error(e, opts, &id));
    }
    let listed = match list(&repo, &id) {
        Ok(listed) => listed,
        Err(e @ HFError::Request { .. }) => {
            return match cached_snapshot(&repo, &id) {
                Ok(dir) => {
                    progress(&format!("cannot reach {}: using the cached copy of `{id}`", opts.endpoint));
                    Ok(dir)
                }
                Err(_) => Err(explain(e, opts, &id)),
            };
        }
        Err(e) => return Err(explain(e, opts, &id)),
    };
    let chosen = choose(&listed, &id)?;
    let patterns = chosen.iter().map(|f| glob_of(&f.path)).collect();
    let dir = with_progress(progress, |reporter| {
        let request = repo.snapshot_download().maybe_revision(id.revision.clone()).allow_patterns(patterns);
        request.progress(Progress::new(reporter)).send()
    })
    .map_err(|e| explain(e, opts, &id))?;
    for file in chosen {
        check_size(&dir.join(&file.path), file, &id)?;
    }
    Ok(dir)
}

/// The cached copy of `file` of data set `id` (`org/name[@revision]`), fetched where it is not there yet. `progress` gets lines for a human.
///
/// # Errors
/// As [`resolve_model`], and if the data set has no such file.
pub fn resolve_dataset_file(id: &str, file: &str, opts: &HubOptions, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let id = HubId::parse(id)?;
    if !choose::is_plain_path(file) {
        return Err(Error::input("hub::bad-id", format!("`{file}` is not a path inside a data set")).hint("write it as the Hub shows it"));
    }
    let client = client(opts)?;
    let repo = client.dataset(&id.owner, &id.name);
    let request = || repo.download_file().filename(file).maybe_revision(id.revision.clone());
    let cached = || request().local_files_only(true).send();
    if opts.offline {
        return cached().map_err(|_| {
            offline_error(Error::input("hub::not-cached", format!("`{file}` of data set `{id}` is not in the cache")), opts, &id)
        });
    }
    let found = match repo.get_paths_info().paths(vec![file.to_owned()]).maybe_revision(id.revision.clone()).send() {
        Ok(entries) => files_of(entries).into_iter().find(|f| f.path == file),
        Err(e @ HFError::Request { .. }) => return cached().map_err(|_| explain(e, opts, &id)),
        Err(e) => return Err(explain(e, opts, &id)),
    };
    let Some(listed) = found else {
        return Err(
            Error::input("hub::no-file", format!("data set `{id}` has no file `{file}`")).hint("look at its list of files on the Hub")
        );
    };
    let path = with_progress(progress, |reporter| request().progress(Progress::new(reporter)).send()).map_err(|e| explain(e, opts, &id))?;
    check_size(&path, &listed, &id)?;
    Ok(path)
}

fn client(opts: &HubOptions) -> Result<HFClientSync> {
    let cache = opts.cache_dir.as_ref().ok_or_else(|| {
        Error::config("hub::no-cache", "there is no directory for the Hub cache").hint("set HF_HOME to a directory, or HOME")
    })?;
    // Given every setting, the client has no reason to look into the environment. Left without a token it would look for one there:
    // a token that is not a legal header value makes it send none.
    let token = opts.token.as_deref().unwrap_or("\n");
    HFClient::builder()
        .endpoint(&opts.endpoint)
        .cache_dir(cache)
        .token(token)
        .user_agent(concat!("qfw/", env!("CARGO_PKG_VERSION")))
        .retry_max_attempts(3)
        .build_sync()
        .map_err(|e| {
            Error::config("hub::bad-endpoint", format!("cannot talk to `{}`", opts.endpoint)).with_source(e).hint("check HF_ENDPOINT")
        })
}

fn list<T: RepoType>(repo: &HFRepositorySync<T>, id: &HubId) -> Result<Vec<Listed>, HFError> {
    repo.list_tree().maybe_revision(id.revision.clone()).recursive(true).send().map(files_of)
}

fn files_of(entries: Vec<RepoTreeEntry>) -> Vec<Listed> {
    let file = |entry| match entry {
        RepoTreeEntry::File { path, size, .. } => Some(Listed { path, size }),
        RepoTreeEntry::Directory { .. } => None,
    };
    entries.into_iter().filter_map(file).collect()
}

/// The snapshot in the cache, if it holds all that a checkpoint needs.
fn cached_snapshot<T: RepoType>(repo: &HFRepositorySync<T>, id: &HubId) -> Result<PathBuf> {
    let not_cached = |_| Error::input("hub::not-cached", format!("`{id}` is not in the cache"));
    let dir = repo.snapshot_download().maybe_revision(id.revision.clone()).local_files_only(true).send().map_err(not_cached)?;
    let incomplete = || format!("the cached copy of `{id}` is incomplete");
    if !dir.join("config.json").exists() {
        return Err(Error::input("hub::not-cached", format!("{}: it lacks config.json", incomplete())));
    }
    SafetensorsSource::open_dir(&dir).map_err(|e| e.within(incomplete()))?;
    Ok(dir)
}

/// The client stores what a failing server answers as if it were the file, so the size is compared with the listing; a file of another
/// size is removed, or every later run would find it in the cache.
fn check_size(path: &Path, listed: &Listed, id: &HubId) -> Result<()> {
    let found = std::fs::metadata(path).map(|m| m.len()).ok();
    if found == Some(listed.size) {
        return Ok(());
    }
    let blob = std::fs::canonicalize(path);
    let removed = std::fs::remove_file(path).and_then(|()| blob.and_then(std::fs::remove_file));
    let found = found.map_or_else(|| "was not fetched".to_owned(), |n| format!("came as {n} bytes"));
    let mut error = Error::input("hub::incomplete", format!("`{}` of `{id}` {found}, the Hub lists {} bytes", listed.path, listed.size))
        .hint("try again");
    if let Err(e) = removed {
        error = error.with_source(e);
    }
    Err(error)
}

/// Runs `work`, whose reporter may speak from any thread, and hands what it says to `progress` on this one.
fn with_progress<R: Send>(progress: &mut dyn FnMut(&str), work: impl FnOnce(Reporter) -> R + Send) -> R {
    let (sender, lines) = mpsc::channel::<String>();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || work(Reporter::new(sender)));
        // The client may keep a reporter beyond its work, so an open channel does not mean that more will come.
        loop {
            match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => progress(&line),
                Err(RecvTimeoutError::Timeout) if !worker.is_finished() => {}
                Err(_) => break,
            }
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn is_repo_part(part: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&part.len())
        && part.chars().all(legal)
        && !part.starts_with(['.', '-'])
        && !part.ends_with('.')
        && !part.contains("..")
}

fn is_revision(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    !text.is_empty()
        && text.chars().all(legal)
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
}
