//! The three questions of the Hub's interface that a download needs, over HTTP.
//!
//! ```text
//! GET  /api/models/ORG/NAME/revision/REVISION     the commit that a branch or tag names
//! GET  /api/models/ORG/NAME/tree/COMMIT[/FOLDER]  its files, page by page
//! GET  /ORG/NAME/resolve/COMMIT/PATH              one of them, or what is left of it
//! ```
//!
//! Data sets have `/api/datasets/…` and `/datasets/ORG/NAME/resolve/…`.

use std::io::Read;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{AUTHORIZATION, HeaderValue, LINK, RANGE};
use ureq::http::{Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::choose::{Listed, is_plain_path};
use super::failure::Failure;
use super::{HubId, HubOptions, Kind};
use crate::error::{Error, Result};

/// What stands in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Silence after which a connection is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than any listing page has.
const PAGE_LIMIT: u64 = 64 << 20;
const TRIES: u32 = 3;

/// One repository of a Hub, as whoever has the token sees it.
pub(super) struct Client {
    agent: Agent,
    token: Option<HeaderValue>,
    /// Addresses without a slash at the end: of the interface, and of files.
    api: String,
    files: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
}

impl Client {
    pub(super) fn new(opts: &HubOptions, kind: Kind, id: &HubId) -> Result<Self> {
        let endpoint = &opts.endpoint;
        let sound = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some();
        if !endpoint.parse::<Uri>().is_ok_and(|uri| sound(&uri)) {
            let text = format!("`{endpoint}` is no address of a Hub");
            return Err(Error::config("hub::bad-endpoint", text).hint("check HF_ENDPOINT; it is as `https://huggingface.co`"));
        }
        let token = match &opts.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    Error::config("hub::bad-token", "the token for the Hub has characters that no token has").hint("check HF_TOKEN")
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("qfw/", env!("CARGO_PKG_VERSION")))
            // Files lie with others, which the token is none of the business of.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .new_agent();
        let (kinds, folder) = match kind {
            Kind::Model => ("models", ""),
            Kind::Dataset => ("datasets", "datasets/"),
        };
        Ok(Self { agent, token, api: format!("{endpoint}/api/{kinds}/{}", id.repo()), files: format!("{endpoint}/{folder}{}", id.repo()) })
    }

    /// The commit that `revision` names.
    pub(super) fn commit(&self, revision: &str) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        let (info, _): (Info, _) = self.json(&format!("{}/revision/{}", self.api, encoded(revision)))?;
        // It becomes the name of a directory.
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Failure::Answer(format!("`{}` is no commit", info.sha)));
        }
        Ok(info.sha)
    }

    /// All files of a commit.
    pub(super) fn list(&self, commit: &str) -> Result<Vec<Listed>, Failure> {
        self.pages(format!("{}/tree/{commit}", self.api), "?recursive=true")
    }

    /// One file of a commit, if it has it. Its folder is listed: mirrors pass on what is got, but seldom what is posted.
    pub(super) fn find(&self, commit: &str, path: &str) -> Result<Option<Listed>, Failure> {
        let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
        let below: String = folders.split('/').filter(|f| !f.is_empty()).map(|f| format!("/{}", encoded(f))).collect();
        match self.pages(format!("{}/tree/{commit}{below}", self.api), "") {
            // The commit is there, so what is not is the folder.
            Err(Failure::Status(404)) if !below.is_empty() => Ok(None),
            found => Ok(found?.into_iter().find(|f| f.path == path)),
        }
    }

    /// The files that a listing names, page by page.
    fn pages(&self, url: String, query: &str) -> Result<Vec<Listed>, Failure> {
        let first = format!("{url}{query}");
        let mut page = first.clone();
        let mut all = Vec::new();
        loop {
            let (entries, next): (Vec<Entry>, _) = self.json(&page)?;
            all.extend(listed(entries)?);
            let Some(query) = next else { return Ok(all) };
            let following = format!("{url}?{query}");
            if following == page || following == first {
                return Err(Failure::Answer("its list of files has no end".to_owned()));
            }
            page = following;
        }
    }

    /// The contents of a file from byte `from` on, or from the start where the server sends all (status 200).
    pub(super) fn open(&self, commit: &str, path: &str, from: u64) -> Result<Response<Body>, Failure> {
        let path = path.split('/').map(encoded).collect::<Vec<_>>().join("/");
        let mut request = self.signed(self.agent.get(format!("{}/resolve/{commit}/{path}", self.files)));
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        answered(request.call().map_err(Failure::Transport)?)
    }

    /// An answer in JSON and, where it is a page of several, the query of the next.
    fn json<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<(T, Option<String>), Failure> {
        let (next, body) = patiently(|| {
            let mut answer = answered(self.signed(self.agent.get(url)).call().map_err(Failure::Transport)?)?;
            let next = answer.headers().get(LINK).and_then(|link| link.to_str().ok()).and_then(next_query);
            let mut body = Vec::new();
            answer.body_mut().as_reader().take(PAGE_LIMIT).read_to_end(&mut body).map_err(|e| Failure::Transport(e.into()))?;
            Ok((next, body))
        })?;
        serde_json::from_slice(&body).map(|value| (value, next)).map_err(|e| Failure::Answer(e.to_string()))
    }

    fn signed(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token),
            None => request,
        }
    }
}

/// Only files, and of them only those whose names stay below the directory they are joined to.
fn listed(entries: Vec<Entry>) -> Result<Vec<Listed>, Failure> {
    let files = entries.into_iter().filter(|e| e.kind == "file" && is_plain_path(&e.path));
    files
        .map(|e| {
            let hash = e.lfs.map_or(e.oid, |lfs| lfs.oid);
            // It becomes the name of a file.
            if hash.is_empty() || !hash.chars().all(|c| c.is_ascii_alphanumeric()) {
                return Err(Failure::Answer(format!("`{hash}` is no hash of `{}`", e.path)));
            }
            Ok(Listed { path: e.path, size: e.size, hash })
        })
        .collect()
}

fn answered(answer: Response<Body>) -> Result<Response<Body>, Failure> {
    let status = answer.status();
    if status.is_success() { Ok(answer) } else { Err(Failure::Status(status.as_u16())) }
}

/// Asks again, a little later each time, where the fault may be gone by then.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut tried = 1;
    loop {
        match ask() {
            Err(failure) if failure.may_pass() && tried < TRIES => pause(tried),
            answer => return answer,
        }
        tried += 1;
    }
}

/// The pause before another try. Whether there is one: not after [`TRIES`].
pub(super) fn may_try_again(tried: u32) -> bool {
    if tried < TRIES {
        pause(tried);
    }
    tried < TRIES
}

fn pause(tried: u32) {
    std::thread::sleep(Duration::from_millis(100 << (2 * tried)));
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// The query of the next page in a `Link` header (RFC 8288): `<ADDRESS?QUERY>; rel="next"`. The address itself may be of another host.
fn next_query(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let address = next.split_once('<')?.1.split_once('>')?.0;
    address.split_once('?').map(|(_, query)| query.to_owned())
}
