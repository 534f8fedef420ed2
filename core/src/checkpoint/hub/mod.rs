//! Models and data sets named by Hub id, through the ordinary cache of Hugging Face's own tools.
//!
//! The layout is theirs (`models--ORG--NAME/{blobs,refs,snapshots}`), so what they have fetched is found here and the other way round.
//! Nothing here reads the environment: a front end fills [`HubOptions`], usually by [`HubOptions::from_lookup`].

mod cache;
mod choose;
mod client;
mod failure;
mod fetch;
mod options;
mod progress;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use options::HubOptions;

use super::SafetensorsSource;
use crate::error::{Error, Result};
use cache::Cached;
use choose::choose;
use client::Client;
use failure::{Failure, offline_error};
use fetch::fetch;

/// What a repository holds.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Dataset,
}

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
    let cached = cache(opts, Kind::Model, &id)?;
    if opts.offline {
        return complete_snapshot(&cached, &id).map_err(|e| offline_error(e, opts, &id));
    }
    let client = Client::new(opts, Kind::Model, &id)?;
    let listed = client.commit(id.revision()).and_then(|commit| client.list(&commit).map(|files| (commit, files)));
    let (commit, files) = match listed {
        Ok(listed) => listed,
        Err(failure @ Failure::Transport(_)) => {
            let dir = complete_snapshot(&cached, &id).map_err(|_| failure.explain(opts, &id))?;
            progress(&format!("cannot reach {}: using the cached copy of `{id}`", opts.endpoint));
            return Ok(dir);
        }
        Err(failure) => return Err(failure.explain(opts, &id)),
    };
    let chosen = choose(&files, &id)?;
    let fetched = fetch(&client, &cached, &commit, &chosen, progress).and_then(|()| cached.remember(id.revision(), &commit));
    fetched.map_err(|failure| failure.explain(opts, &id))?;
    Ok(cached.snapshot(&commit))
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
    let cached = cache(opts, Kind::Dataset, &id)?;
    let there = || cached.commit(id.revision()).map(|commit| cached.snapshot(&commit).join(file)).filter(|path| path.is_file());
    if opts.offline {
        return there().ok_or_else(|| {
            offline_error(Error::input("hub::not-cached", format!("`{file}` of data set `{id}` is not in the cache")), opts, &id)
        });
    }
    let client = Client::new(opts, Kind::Dataset, &id)?;
    let found = client.commit(id.revision()).and_then(|commit| client.find(&commit, file).map(|found| (commit, found)));
    let (commit, found) = match found {
        Ok(found) => found,
        Err(failure @ Failure::Transport(_)) => return there().ok_or_else(|| failure.explain(opts, &id)),
        Err(failure) => return Err(failure.explain(opts, &id)),
    };
    let Some(listed) = found else {
        return Err(
            Error::input("hub::no-file", format!("data set `{id}` has no file `{file}`")).hint("look at its list of files on the Hub")
        );
    };
    let fetched = fetch(&client, &cached, &commit, &[&listed], progress).and_then(|()| cached.remember(id.revision(), &commit));
    fetched.map_err(|failure| failure.explain(opts, &id))?;
    Ok(cached.snapshot(&commit).join(file))
}

fn cache(opts: &HubOptions, kind: Kind, id: &HubId) -> Result<Cached> {
    let dir = opts.cache_dir.as_ref().ok_or_else(|| {
        Error::config("hub::no-cache", "there is no directory for the Hub cache").hint("set HF_HOME to a directory, or HOME")
    })?;
    Ok(Cached::new(dir, kind, id))
}

/// The snapshot in the cache, if it holds all that a checkpoint needs.
fn complete_snapshot(cached: &Cached, id: &HubId) -> Result<PathBuf> {
    let commit = cached.commit(id.revision()).ok_or_else(|| Error::input("hub::not-cached", format!("`{id}` is not in the cache")))?;
    let dir = cached.snapshot(&commit);
    let incomplete = || format!("the cached copy of `{id}` is incomplete");
    if !dir.join("config.json").exists() {
        return Err(Error::input("hub::not-cached", format!("{}: it lacks config.json", incomplete())));
    }
    SafetensorsSource::open_dir(&dir).map_err(|e| e.within(incomplete()))?;
    Ok(dir)
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
