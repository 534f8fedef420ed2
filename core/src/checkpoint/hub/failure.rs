//! What can go wrong with the Hub, and what it means for the user.

use std::path::PathBuf;

use super::choose::Listed;
use super::{HubId, HubOptions};
use crate::error::{Error, ErrorKind};

pub(super) enum Failure {
    /// The Hub answers with this status.
    Status(u16),
    /// It does not answer, or not to the end.
    Transport(ureq::Error),
    /// Its answer makes no sense.
    Answer(String),
    /// A file is of another length than listed.
    Length { path: String, came: u64, listed: u64 },
    /// This path of the cache cannot be used.
    Disk(PathBuf, std::io::Error),
}

impl Failure {
    pub(super) fn length(file: &Listed, came: u64) -> Self {
        Self::Length { path: file.path.clone(), came, listed: file.size }
    }

    /// Whether the next attempt may succeed.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Transport(_) | Self::Status(416 | 500..))
    }

    /// Met while fetching `id`, with what can be done about it.
    pub(super) fn explain(self, opts: &HubOptions, id: &HubId) -> Error {
        let endpoint = &opts.endpoint;
        let io = |code, text| Error::new(ErrorKind::Io, code, text);
        match self {
            // The Hub answers 401 for what does not exist too, so as not to tell which private repositories do.
            Self::Status(401) => Error::input("hub::not-found", format!("{endpoint} shows no `{id}`")).hint(match opts.token {
                Some(_) => "check the spelling; if it is private or gated, the token must have access to it",
                None => "check the spelling; if it is private or gated, set HF_TOKEN",
            }),
            Self::Status(403) => Error::input("hub::forbidden", format!("{endpoint} refuses access to `{id}`"))
                .hint("accept its terms on the Hub with the account of HF_TOKEN"),
            Self::Status(404) => Error::input("hub::not-found", format!("there is no `{id}` at {endpoint}, nor a path of that name here"))
                .hint("check name and revision"),
            Self::Status(429) => io("hub::rate-limited", format!("{endpoint} gets too many requests from here")).hint("try again later"),
            Self::Status(code) => {
                io("hub::failed", format!("{endpoint} answers {code} for `{id}`")).hint("try again; what was fetched is kept")
            }
            Self::Transport(error) => io("hub::unreachable", format!("fetching `{id}` from {endpoint} failed"))
                .with_source(error)
                .hint("check the network and HF_ENDPOINT, or give a local path; what was fetched is kept"),
            Self::Answer(why) => {
                io("hub::failed", format!("what {endpoint} says of `{id}` is not what a Hub says: {why}")).hint("check HF_ENDPOINT")
            }
            Self::Length { path, came, listed } => {
                Error::input("hub::incomplete", format!("`{path}` of `{id}` came as {came} bytes, the Hub lists {listed} bytes"))
                    .hint("try again")
            }
            Self::Disk(path, error) => {
                Error::io(&path, "use", error).hint("check space and permissions there, or point HF_HUB_CACHE to another directory")
            }
        }
    }
}

/// `error`, with the reason why nothing is fetched and where it was looked for.
pub(super) fn offline_error(error: Error, opts: &HubOptions, id: &HubId) -> Error {
    let cache = opts.cache_dir.as_ref().map(|d| d.display().to_string()).unwrap_or_default();
    Error::input("hub::offline", format!("{error}, and HF_HUB_OFFLINE is set"))
        .hint(format!("unset HF_HUB_OFFLINE to fetch `{}`, or point HF_HUB_CACHE to a cache that has it (now `{cache}`)", id.repo()))
}
