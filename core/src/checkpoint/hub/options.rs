//! Where the Hub is, where its cache is, and who asks.

use std::fmt;
use std::path::{Path, PathBuf};

/// How to reach the Hub.
#[derive(Clone)]
pub struct HubOptions {
    /// Base address, without a slash at the end.
    pub endpoint: String,
    /// The directory that holds `models--…` and `datasets--…`; `None` if no home directory is known.
    pub cache_dir: Option<PathBuf>,
    /// Use the cache only.
    pub offline: bool,
    /// Access token.
    pub token: Option<String>,
}

impl HubOptions {
    /// Settings from variables under the names and with the precedence of Hugging Face's tools: `HF_ENDPOINT`; `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME`; `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`; `HF_TOKEN`,
    /// `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH` and the token file in `HF_HOME`, and `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
    ///
    /// `lookup` gives the value of a variable; an empty value counts as unset.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| get(name));
        let on = |name: &str| get(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()));
        let home = get("HOME").or_else(|| get("USERPROFILE")).map(PathBuf::from);
        let path = |text: String| expand(&text, home.as_deref());
        let hf_home = get("HF_HOME")
            .map(path)
            .or_else(|| get("XDG_CACHE_HOME").map(|x| path(x).join("huggingface")))
            .or_else(|| home.as_ref().map(|h| h.join(".cache").join("huggingface")));
        let token_file = get("HF_TOKEN_PATH").map(path).or_else(|| hf_home.as_ref().map(|h| h.join("token")));
        let token = if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| read_token(&token_file?))
        };
        Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()).trim_end_matches('/').to_owned(),
            cache_dir: first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(path).or_else(|| hf_home.map(|h| h.join("hub"))),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            token,
        }
    }
}

/// Without the token: debug output ends up in logs.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .finish()
    }
}

/// `~/…` below the home directory.
fn expand(text: &str, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

/// A token file that is not there means only that nobody has logged in.
fn read_token(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}
