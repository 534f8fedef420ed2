//! Against a server of the test's own that speaks as much of the Hub as a download needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;
use crate::checkpoint::Checkpoint;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    path: String,
    authorization: Option<String>,
    range: Option<String>,
}

/// Answers on 127.0.0.1 until the test process ends.
struct Server {
    endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// What a server offers.
#[derive(Clone, Default)]
struct Site {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Revision at which the files are listed.
    revision: &'static str,
    /// Status with which `GET` of this file fails.
    broken: Option<(&'static str, u16)>,
    /// Status for everything.
    status: Option<u16>,
    /// The first `GET` of a file ends after half of it.
    cut: bool,
    /// Files come whole, whatever is asked for.
    no_ranges: bool,
    /// Where files are sent from instead.
    elsewhere: Option<String>,
    /// What the server calls the commit, if not [`COMMIT`], and the hashes of files.
    commit: Option<&'static str>,
    hash: Option<&'static str>,
}

impl Server {
    fn start(site: Site) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (site, log) = (site.clone(), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &site, &log));
            }
        });
        Self { endpoint, seen }
    }

    fn options(&self, cache: &TempDir) -> HubOptions {
        HubOptions { endpoint: self.endpoint.clone(), cache_dir: Some(cache.path().to_owned()), offline: false, token: None }
    }

    fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// One request, one answer, then the connection ends. Nothing but `GET` is answered, as by a mirror.
fn serve(stream: TcpStream, site: &Site, log: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let target = words.next().filter(|method| method == "GET").and(words.next())?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = percent_encoding::percent_decode_str(path).decode_utf8().ok()?;
    let mut seen = Seen { path: path.into_owned(), ..Seen::default() };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "authorization" => seen.authorization = Some(value.to_owned()),
            "range" => seen.range = Some(value.to_owned()),
            _ => {}
        }
    }
    let answer = answer(site, &seen, query);
    let first = {
        let mut log = log.lock().ok()?;
        let first = log.iter().all(|s| s.path != seen.path);
        log.push(seen.clone());
        first
    };
    let from = seen.range.filter(|_| !site.no_ranges).and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let (status, body) = match from {
        Some(from) if answer.status == 200 => (206, &answer.body[from..]),
        _ => (answer.status, &answer.body[..]),
    };
    let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n", body.len(), answer.headers);
    let cut = site.cut && first && seen.path.contains("/resolve/");
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(if cut { &body[..body.len() / 2] } else { body }).ok()?;
    stream.flush().ok()
}

#[derive(Default)]
struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(site: &Site, seen: &Seen, query: &str) -> Answer {
    let plain = |status: u16, body: &[u8]| Answer { status, body: body.to_vec(), ..Answer::default() };
    if let Some(status) = site.status {
        return plain(status, b"{\"error\":\"no\"}");
    }
    let hash = |name: &str| site.hash.map_or_else(|| blake3::hash(name.as_bytes()).to_hex().to_string(), str::to_owned);
    let entry = |(name, data): (&&str, &Vec<u8>)| serde_json::json!({"type": "file", "oid": hash(name), "size": data.len(), "path": name});
    let at = |revision: &str| revision == site.revision || revision == COMMIT;
    let path = seen.path.trim_start_matches('/');
    let api = path.strip_prefix("api/models/acme/tiny/").or_else(|| path.strip_prefix("api/datasets/acme/text/"));
    let asked = api.and_then(|rest| rest.split_once('/')).map(|(what, of)| (what, of.split_once('/').unwrap_or((of, ""))));
    match asked.filter(|(_, (revision, _))| at(revision)) {
        Some(("revision", _)) => {
            let info = serde_json::json!({"id": "acme/tiny", "sha": site.commit.unwrap_or(COMMIT)});
            return plain(200, info.to_string().as_bytes());
        }
        // In two pages, of which the first names the second by another host.
        Some(("tree", (_, folder))) => {
            let second = query.contains("cursor=x");
            let here = |name: &str| query.contains("recursive=true") || name.rsplit_once('/').map_or("", |(folder, _)| folder) == folder;
            let entries: Vec<_> = site.files.iter().filter(|(name, _)| here(name)).map(entry).collect();
            if entries.is_empty() {
                return plain(404, b"{\"error\":\"no such folder\"}");
            }
            let (page, headers) = match entries.split_at(entries.len() / 2) {
                (_, last) if second => (last, String::new()),
                (first, _) => (first, format!("Link: <https://elsewhere.example/tree?{query}&cursor=x>; rel=\"next\"\r\n")),
            };
            return Answer { status: 200, headers, body: serde_json::to_vec(page).unwrap() };
        }
        _ => {}
    }
    let resolved = path.strip_prefix("acme/tiny/resolve/").or_else(|| path.strip_prefix("datasets/acme/text/resolve/"));
    match resolved.and_then(|rest| rest.split_once('/')).filter(|(revision, _)| at(revision)) {
        Some((_, file)) => match (&site.elsewhere, site.broken) {
            (Some(there), _) => Answer { status: 302, headers: format!("Location: {there}/{path}\r\n"), body: Vec::new() },
            (_, Some((broken, status))) if broken == file => plain(status, b"down for maintenance"),
            _ => site.files.get(file).map_or(plain(404, b""), |data| plain(200, data)),
        },
        None => plain(404, b"{\"error\":\"not found\"}"),
    }
}

fn shard() -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    "#;
    [&(header.len() as u64).to_le_bytes()[..], header, &1.5f32.to_le_bytes()].concat()
}

fn model() -> Site {
    let text = |t: &str| t.as_bytes().to_vec();
    let files = BTreeMap::from([
        ("config.json", text(r#"{"model_type": "llama"}"#)),
        ("model.safetensors", shard()),
        ("tokenizer.json", text("{}")),
        ("additional_chat_templates/tool.jinja", text("{{ x }}")),
        (".gitattributes", text("x")),
        ("pytorch_model.bin", text("pickle")),
        ("onnx/model.onnx", text("onnx")),
        ("onnx/config.json", text("{}")),
        ("consolidated.safetensors", shard()),
        ("figure.png", text("png")),
    ]);
    Site { files, revision: "main", ..Site::default() }
}

fn fetch_model(id: &str, opts: &HubOptions) -> (Result<PathBuf>, Vec<String>) {
    let mut lines = Vec::new();
    let result = resolve_model(id, opts, &mut |line| lines.push(line.to_owned()));
    (result, lines)
}

fn dataset_file(id: &str, file: &str, opts: &HubOptions) -> Result<PathBuf> {
    resolve_dataset_file(id, file, opts, &mut |_| {})
}

fn message(error: Error) -> String {
    format!("[{}] {error} | {}", error.code(), error.hint_text().unwrap_or("no hint"))
}

#[test]
fn a_model_arrives_in_the_ordinary_cache_layout() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let opts = HubOptions { token: Some("hf_secret".to_owned()), ..server.options(&cache) };
    let (dir, lines) = fetch_model("acme/tiny", &opts);
    let dir = dir.unwrap();
    assert_eq!(dir, cache.path().join("models--acme--tiny/snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(cache.path().join("models--acme--tiny/refs/main")).unwrap(), COMMIT);
    assert_eq!(lines.first().map(String::as_str), Some("downloading 0.0 MB"));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let mut w = Vec::new();
    checkpoint.tensors.read_f32("w", 0..1, &mut w).unwrap();
    assert_eq!(w, [1.5]);
    for (name, there) in [
        ("tokenizer.json", true),
        ("additional_chat_templates/tool.jinja", true),
        (".gitattributes", false),
        ("pytorch_model.bin", false),
        ("onnx/model.onnx", false),
        ("onnx/config.json", false),
        ("consolidated.safetensors", false),
        ("figure.png", false),
    ] {
        assert_eq!(dir.join(name).exists(), there, "{name}");
    }
    let seen = server.take_seen();
    assert!(seen.iter().all(|s| s.authorization.as_deref() == Some("Bearer hf_secret")), "{seen:?}");

    let (again, _) = fetch_model("acme/tiny", &opts);
    assert_eq!(again.unwrap(), dir);
    assert!(!server.take_seen().iter().any(|s| s.path.contains("/resolve/")), "nothing is fetched twice");

    let offline = HubOptions { offline: true, ..opts };
    assert_eq!(fetch_model("acme/tiny", &offline).0.unwrap(), dir);
    assert_eq!(fetch_model(&format!("acme/tiny@{COMMIT}"), &offline).0.unwrap(), dir);
    assert_eq!(server.take_seen(), [], "offline means offline");
}

#[test]
fn without_a_token_none_is_sent() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    fetch_model("acme/tiny", &server.options(&cache)).0.unwrap();
    assert!(server.take_seen().iter().all(|s| s.authorization.is_none()));
}

#[test]
fn a_revision_is_fetched_by_name() {
    let (server, cache) = (Server::start(Site { revision: "v1.0", ..model() }), tempfile::tempdir().unwrap());
    let opts = server.options(&cache);
    fetch_model("acme/tiny@v1.0", &opts).0.unwrap();
    assert!(cache.path().join("models--acme--tiny/refs/v1.0").exists());
    assert_eq!(
        message(fetch_model("acme/tiny", &opts).0.unwrap_err()),
        format!(
            "[hub::not-found] there is no `acme/tiny@main` at {}, nor a path of that name here | check name and revision",
            opts.endpoint
        )
    );
}

#[test]
fn offline_says_what_is_missing() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let opts = HubOptions { offline: true, ..server.options(&cache) };
    let hint = format!(
        "unset HF_HUB_OFFLINE to fetch `acme/tiny`, or point HF_HUB_CACHE to a cache that has it (now `{}`)",
        cache.path().display()
    );
    assert_eq!(
        message(fetch_model("acme/tiny", &opts).0.unwrap_err()),
        format!("[hub::offline] `acme/tiny@main` is not in the cache, and HF_HUB_OFFLINE is set | {hint}")
    );
    let dir = fetch_model("acme/tiny", &server.options(&cache)).0.unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert_eq!(
        message(fetch_model("acme/tiny", &opts).0.unwrap_err()),
        format!(
            "[hub::offline] the cached copy of `acme/tiny@main` is incomplete: `{}` holds no *.safetensors file, and HF_HUB_OFFLINE is set | {hint}",
            dir.display()
        )
    );
    assert_eq!(
        message(dataset_file("acme/text", "a.txt", &opts).unwrap_err()),
        format!(
            "[hub::offline] `a.txt` of data set `acme/text@main` is not in the cache, and HF_HUB_OFFLINE is set | {}",
            hint.replace("tiny", "text")
        )
    );
}

#[test]
fn repositories_that_cannot_be_read_are_refused_before_the_download() {
    let refuse = |keep: &[&str]| {
        let mut site = model();
        site.files.insert("w.gguf", Vec::new());
        site.files.retain(|name, _| keep.contains(name));
        let (server, cache) = (Server::start(site), tempfile::tempdir().unwrap());
        let text = message(fetch_model("acme/tiny", &server.options(&cache)).0.unwrap_err());
        assert!(!server.take_seen().iter().any(|s| s.path.contains("/resolve/")));
        text
    };
    assert_eq!(
        refuse(&["config.json", "pytorch_model.bin"]),
        "[hub::no-weights] `acme/tiny@main` has only pickled weights (`pytorch_model.bin`), which can run code when read | \
         look for a revision or a copy with safetensors; pickles are never read"
    );
    assert_eq!(
        refuse(&["config.json", "w.gguf"]),
        "[hub::no-weights] `acme/tiny@main` has no safetensors weights, but GGUF files such as `w.gguf` | \
         download the one you want and give its path"
    );
    assert_eq!(refuse(&["config.json"]), "[hub::no-weights] `acme/tiny@main` has no safetensors weights | is it a model?");
    assert_eq!(
        refuse(&["model.safetensors"]),
        "[hub::no-config] `acme/tiny@main` has no config.json | is it an adapter or a part of a model?"
    );
}

#[test]
fn refusals_of_the_server_are_explained() {
    for (status, want) in [
        (401, "[hub::not-found] ENDPOINT shows no `acme/tiny@main` | check the spelling; if it is private or gated, set HF_TOKEN"),
        (403, "[hub::forbidden] ENDPOINT refuses access to `acme/tiny@main` | accept its terms on the Hub with the account of HF_TOKEN"),
        (418, "[hub::failed] ENDPOINT answers 418 for `acme/tiny@main` | try again; what was fetched is kept"),
    ] {
        let (server, cache) = (Server::start(Site { status: Some(status), ..model() }), tempfile::tempdir().unwrap());
        let text = message(fetch_model("acme/tiny", &server.options(&cache)).0.unwrap_err());
        assert_eq!(text.replace(&server.endpoint, "ENDPOINT"), want);
    }
}

#[test]
fn an_unreachable_hub_does_not_hinder_what_is_cached() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    // Bound and dropped: nobody listens there.
    let dead = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let opts = HubOptions { endpoint: dead.clone(), ..server.options(&cache) };
    assert_eq!(
        message(fetch_model("acme/tiny", &opts).0.unwrap_err()),
        format!(
            "[hub::unreachable] fetching `acme/tiny@main` from {dead} failed | \
             check the network and HF_ENDPOINT, or give a local path; what was fetched is kept"
        )
    );
    let dir = fetch_model("acme/tiny", &server.options(&cache)).0.unwrap();
    let (found, lines) = fetch_model("acme/tiny", &opts);
    assert_eq!(found.unwrap(), dir);
    assert_eq!(lines, [format!("cannot reach {dead}: using the cached copy of `acme/tiny@main`")]);
}

#[test]
fn an_error_page_does_not_stay_in_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let broken = Server::start(Site { broken: Some(("model.safetensors", 410)), ..model() });
    assert_eq!(
        message(fetch_model("acme/tiny", &broken.options(&cache)).0.unwrap_err()),
        format!("[hub::failed] {} answers 410 for `acme/tiny@main` | try again; what was fetched is kept", broken.endpoint)
    );
    // A page of the length of the weights would be no page of that status: what counts is the length that is listed.
    let other = Server::start(Site { broken: Some(("model.safetensors", 200)), ..model() });
    assert_eq!(
        message(fetch_model("acme/tiny", &other.options(&cache)).0.unwrap_err()),
        "[hub::incomplete] `model.safetensors` of `acme/tiny@main` came as 20 bytes, the Hub lists 70 bytes | try again"
    );
    assert!(!cache.path().join("models--acme--tiny/refs/main").exists(), "nothing says that it is there");
    let server = Server::start(model());
    let dir = fetch_model("acme/tiny", &server.options(&cache)).0.unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), shard());
}

#[test]
fn a_download_goes_on_where_it_stopped() {
    let ranges = |server: &Server| -> Vec<Option<String>> {
        server.take_seen().into_iter().filter(|s| s.path.ends_with("/model.safetensors")).map(|s| s.range).collect()
    };
    for no_ranges in [false, true] {
        let (server, cache) = (Server::start(Site { cut: true, no_ranges, ..model() }), tempfile::tempdir().unwrap());
        let dir = fetch_model("acme/tiny", &server.options(&cache)).0.unwrap();
        assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), shard());
        assert_eq!(ranges(&server)[..2], [None, Some("bytes=35-".to_owned())]);
    }
    // What another process left.
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--acme--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", blake3::hash(b"model.safetensors").to_hex()));
    std::fs::write(&partial, &shard()[..60]).unwrap();
    let dir = fetch_model("acme/tiny", &server.options(&cache)).0.unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), shard());
    assert_eq!(ranges(&server), [Some("bytes=60-".to_owned())]);
    assert!(!partial.exists());
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let (there, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    // The same machine by another name.
    let elsewhere = Some(there.endpoint.replace("127.0.0.1", "localhost"));
    let hub = Server::start(Site { elsewhere, ..model() });
    let opts = HubOptions { token: Some("hf_secret".to_owned()), ..hub.options(&cache) };
    let dir = fetch_model("acme/tiny", &opts).0.unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), shard());
    assert!(hub.take_seen().iter().all(|s| s.authorization.as_deref() == Some("Bearer hf_secret")));
    let seen = there.take_seen();
    assert!(!seen.is_empty() && seen.iter().all(|s| s.authorization.is_none()), "{seen:?}");
    let opts = HubOptions { token: Some("two\nlines".to_owned()), ..hub.options(&cache) };
    let refused = "[hub::bad-token] the token for the Hub has characters that no token has | check HF_TOKEN";
    assert_eq!(message(fetch_model("acme/tiny", &opts).0.unwrap_err()), refused);
    for endpoint in ["hub.example", "ftp://hub.example", "http://"] {
        let opts = HubOptions { endpoint: endpoint.to_owned(), ..hub.options(&cache) };
        let text = message(fetch_model("acme/tiny", &opts).0.unwrap_err());
        assert!(text.starts_with(&format!("[hub::bad-endpoint] `{endpoint}` is no address of a Hub | ")), "{text}");
    }
}

#[test]
fn a_server_cannot_name_paths() {
    for (site, why) in [
        (Site { commit: Some("../x"), ..model() }, "`../x` is no commit"),
        (Site { hash: Some("../../x"), ..model() }, "`../../x` is no hash of `.gitattributes`"),
        (Site { files: BTreeMap::from([("../config.json", Vec::new())]), ..model() }, "has no safetensors weights"),
    ] {
        let (server, cache) = (Server::start(site), tempfile::tempdir().unwrap());
        let text = message(fetch_model("acme/tiny", &server.options(&cache)).0.unwrap_err());
        assert!(text.contains(why), "{text}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "{why}");
    }
}

#[test]
fn a_file_of_a_data_set_is_fetched_alone() {
    let site = Site { files: BTreeMap::from([("data/a [1].txt", b"text".to_vec())]), revision: "main", ..Site::default() };
    let mut listed = site.clone();
    listed.files.insert("b.txt", b"other".to_vec());
    let (server, cache) = (Server::start(listed), tempfile::tempdir().unwrap());
    let opts = server.options(&cache);
    let path = dataset_file("acme/text", "b.txt", &opts).unwrap();
    assert_eq!(path, cache.path().join("datasets--acme--text/snapshots").join(COMMIT).join("b.txt"));
    assert_eq!(std::fs::read(&path).unwrap(), b"other");
    assert_eq!(dataset_file("acme/text", "b.txt", &HubOptions { offline: true, ..opts.clone() }).unwrap(), path);
    let below = dataset_file("acme/text", "data/a [1].txt", &opts).unwrap();
    assert_eq!(std::fs::read(&below).unwrap(), b"text");
    for absent in ["c.txt", "data/c.txt", "elsewhere/c.txt"] {
        assert_eq!(
            message(dataset_file("acme/text", absent, &opts).unwrap_err()),
            format!("[hub::no-file] data set `acme/text@main` has no file `{absent}` | look at its list of files on the Hub")
        );
    }
    assert_eq!(
        message(dataset_file("acme/text", "../c.txt", &opts).unwrap_err()),
        "[hub::bad-id] `../c.txt` is not a path inside a data set | write it as the Hub shows it"
    );
}

#[test]
fn ids_are_told_from_paths() {
    for id in ["acme/tiny", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b@main", "a/b_c.d@refs/pr/1", &format!("a/b@{COMMIT}")] {
        assert!(looks_like_hub_id(id), "{id}");
    }
    let dir = tempfile::tempdir().unwrap();
    for path in
        ["gpt2", "./model", "/model", "a/b/c", "../b", "a/", "a/b@", "a/b@../x", "a/b c", "a/..", "a/b@x//y", dir.path().to_str().unwrap()]
    {
        assert!(!looks_like_hub_id(path), "{path}");
    }
    assert!(!looks_like_hub_id("src/lib.rs"), "tests run in the folder of the crate, where this exists");
    let error = resolve_model("gpt2", &HubOptions::from_lookup(&|_| None), &mut |_| {}).unwrap_err();
    assert_eq!(message(error), "[hub::bad-id] `gpt2` is not a Hub id | write `org/name` or `org/name@revision`");
}

#[test]
fn settings_follow_hugging_faces_variables() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let options = |set: &[(&str, &str)]| {
        let set: BTreeMap<String, String> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        HubOptions::from_lookup(&move |name| set.get(name).cloned())
    };
    let cache = |set: &[(&str, &str)]| options(set).cache_dir;
    assert_eq!(cache(&[]), None);
    assert_eq!(cache(&[("HOME", home)]), Some(dir.path().join(".cache/huggingface/hub")));
    assert_eq!(cache(&[("HOME", home), ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
    assert_eq!(cache(&[("HOME", home), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")]), Some(dir.path().join("h/hub")));
    assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Some("/c".into()));
    assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", " ")]), Some("/h/hub".into()), "blank is unset");
    assert_eq!(options(&[]).endpoint, "https://huggingface.co");
    assert_eq!(options(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    for (value, offline) in [("1", true), ("true", true), ("Yes", true), ("ON", true), ("0", false), ("", false), ("no", false)] {
        assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
    }
    std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
    let token = |set: &[(&str, &str)]| options(&[&[("HF_HOME", home)], set].concat()).token;
    assert_eq!(token(&[]).as_deref(), Some("from-file"));
    assert_eq!(token(&[("HF_TOKEN", "t")]).as_deref(), Some("t"));
    assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere/token")]), None);
    assert_eq!(token(&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    let shown = format!("{:?}", options(&[("HF_TOKEN", "hf_secret")]));
    assert!(!shown.contains("hf_secret") && shown.contains("(set)"), "{shown}");
    assert_eq!(
        message(resolve_model("a/b", &options(&[]), &mut |_| {}).unwrap_err()),
        "[hub::no-cache] there is no directory for the Hub cache | set HF_HOME to a directory, or HOME"
    );
}
