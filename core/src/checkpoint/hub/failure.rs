//! What failures of the Hub mean for the user.

use hf_hub::HFError;

use super::{HubId, HubOptions};
use crate::error::{Error, ErrorKind};

/// `error`, met while fetching `id`, with what can be done about it.
pub(super) fn explain(error: HFError, opts: &HubOptions, id: &HubId) -> Error {
    let endpoint = &opts.endpoint;
    let status = match &error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::RateLimited { context, .. } => Some(context.status.as_u16()),
        HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => Some(404),
        _ => None,
    };
    let out = match status {
        // The Hub answers 401 for what does not exist too, so as not to tell which private repositories do.
        Some(401) => Error::input("hub::not-found", format!("{endpoint} shows no `{id}`")).hint(match opts.token {
            Some(_) => "check the spelling; if it is private or gated, the token must have access to it",
            None => "check the spelling; if it is private or gated, set HF_TOKEN",
        }),
        Some(403) => Error::input("hub::forbidden", format!("{endpoint} refuses access to `{id}`"))
            .hint("accept its terms on the Hub with the account of HF_TOKEN"),
        Some(404) => Error::input("hub::not-found", format!("there is no `{id}` at {endpoint}, nor a path of that name here"))
            .hint("check name and revision"),
        Some(429) => {
            Error::new(ErrorKind::Io, "hub::rate-limited", format!("{endpoint} gets too many requests from here")).hint("try again later")
        }
        Some(code) => Error::new(ErrorKind::Io, "hub::failed", format!("{endpoint} answers {code} for `{id}`"))
            .hint("try again; what was fetched is kept"),
        None if matches!(error, HFError::Request { .. }) => {
            Error::new(ErrorKind::Io, "hub::unreachable", format!("fetching `{id}` from {endpoint} failed"))
                .hint("check the network and HF_ENDPOINT, or give a local path; what was fetched is kept")
        }
        None => Error::new(ErrorKind::Io, "hub::failed", format!("fetching `{id}` from {endpoint} failed"))
            .hint("try again; what was fetched is kept"),
    };
    out.with_source(error)
}

/// `error`, with the reason why nothing is fetched and where it was looked for.
pub(super) fn offline_error(error: Error, opts: &HubOptions, id: &HubId) -> Error {
    let cache = opts.cache_dir.as_ref().map(|d| d.display().to_string()).unwrap_or_default();
    Error::input("hub::offline", format!("{error}, and HF_HUB_OFFLINE is set"))
        .hint(format!("unset HF_HUB_OFFLINE to fetch `{}`, or point HF_HUB_CACHE to a cache that has it (now `{cache}`)", id.repo()))
}
