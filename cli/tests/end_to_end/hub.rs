//! Hub ids and named data sets, against a server of the test's own and a cache in a temporary directory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::errors::refused_with;
use super::{Ran, args, asset, command, finish, tree};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WIKITEXT: &str = "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3";

/// Files by path in a repository, by repository as it stands in an address: `org/name` or `datasets/org/name`.
type Site = BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>;

/// A Hub with the tiny LLaMA and the ends of WikiText-2, and a machine with an empty cache.
struct Hub {
    endpoint: String,
    home: TempDir,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let site = Arc::new(site());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = Arc::clone(&site);
                std::thread::spawn(move || serve(stream, &site));
            }
        });
        Self { endpoint, home: tempfile::tempdir().unwrap() }
    }

    fn run(&self, offline: bool, args: &[String]) -> Ran {
        let mut command = command(args);
        command.env("HF_HOME", self.home.path()).env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
        finish(command.env("HF_ENDPOINT", &self.endpoint).env("NO_PROXY", "127.0.0.1"))
    }

    fn online(&self, words: &str, more: &[&str]) -> Ran {
        self.run(false, &args(words, more))
    }

    fn offline(&self, words: &str, more: &[&str]) -> Ran {
        self.run(true, &args(words, more))
    }

    fn cache(&self) -> String {
        self.home.path().join("hub").display().to_string()
    }
}

fn site() -> Site {
    let file = |name: &str| (name.to_owned(), std::fs::read(Path::new(&asset("tiny-llama")).join(name)).unwrap());
    let model = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"].map(file);
    let split = |name: &str, text: &str| {
        let text = std::fs::read_to_string(asset(text)).unwrap();
        (format!("wikitext-2-raw-v1/{name}-00000-of-00001.parquet"), parquet_of(&text))
    };
    let wikitext = [split("train", "text/calibration.txt"), split("test", "text/evaluation.txt")];
    BTreeMap::from([("org/tiny", BTreeMap::from(model)), ("datasets/Salesforce/wikitext", BTreeMap::from(wikitext))])
}

/// A parquet file with the paragraphs of `text` as the rows of a column `text`.
fn parquet_of(text: &str) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message m { required binary text (UTF8); }").unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let rows: Vec<ByteArray> = text.split("\n\n").map(ByteArray::from).collect();
    column.typed::<ByteArrayType>().write_batch(&rows, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// One request, one answer, then the connection ends.
fn serve(mut stream: TcpStream, site: &Site) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let target = words.nth(1)?.to_owned();
    let headers = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    headers.for_each(drop);
    let answered = answer(site, target.split('?').next()?);
    let (status, body) = answered.map_or((404, Vec::new()), |body| (200, body));
    let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).ok()?;
    stream.flush().ok()
}

/// What a repository holds, or one of its files.
fn answer(site: &Site, path: &str) -> Option<Vec<u8>> {
    let path = path.trim_start_matches('/');
    let commit_of = |revision: &str| if revision == "main" { COMMIT.to_owned() } else { revision.to_owned() };
    site.iter().find_map(|(repo, files)| {
        if let Some((revision, file)) = path.strip_prefix(&format!("{repo}/resolve/")).and_then(|rest| rest.split_once('/')) {
            return (revision == COMMIT || WIKITEXT.ends_with(revision)).then(|| files.get(file).cloned())?;
        }
        let api = if repo.starts_with("datasets/") { format!("api/{repo}/") } else { format!("api/models/{repo}/") };
        let (what, of) = path.strip_prefix(&api)?.split_once('/')?;
        let (revision, folder) = of.split_once('/').unwrap_or((of, ""));
        let entry = |(name, data): (&String, &Vec<u8>)| {
            let hash = name.replace(|c: char| !c.is_ascii_alphanumeric(), "");
            serde_json::json!({"type": "file", "oid": hash, "size": data.len(), "path": name})
        };
        let body = match what {
            "revision" => serde_json::json!({"id": repo, "sha": commit_of(revision)}),
            "tree" => serde_json::Value::Array(files.iter().filter(|(name, _)| name.starts_with(folder)).map(entry).collect()),
            _ => return None,
        };
        Some(body.to_string().into_bytes())
    })
}

const RTN: &str = "--algo rtn --set scheme.weights.format=int4";
const GPTQ: &str = "--algo gptq --set scheme.weights.format=int4 --set calibration.samples=4 --set calibration.seq-len=64";
const EVAL: &str = "eval --seq-len 128 --max-windows 4 --json";

#[test]
fn a_model_of_the_hub_is_as_good_as_a_local_one_and_stays_for_offline_use() {
    let hub = Hub::start();
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name).display().to_string();
    let ran = hub.online(&format!("apply {RTN}"), &["org/tiny", "-o", &out("fetched")]).ok();
    assert!(ran.stderr.contains("`org/tiny`: downloading "), "{}", ran.stderr);
    let ran = hub.offline(&format!("apply {RTN}"), &["org/tiny", "-o", &out("cached")]).ok();
    assert!(!ran.stderr.contains("downloading"), "{}", ran.stderr);
    let (fetched, cached) = (tree(&dir.path().join("fetched")), tree(&dir.path().join("cached")));
    assert!(fetched.contains_key(Path::new("tokenizer.json")));
    super::same_tree(&fetched, &cached, "fetched and cached");
    let snapshot = format!("org/tiny@{COMMIT}");
    let inspected = hub.offline("inspect --json", &[&snapshot]).json();
    assert_eq!(inspected["model_type"], "llama");
    hub.offline("topology check", &["org/tiny"]).ok();
    let ran = hub.offline("generate --max-new-tokens 2", &["org/tiny", "--prompt", "The"]).ok();
    assert!(ran.stdout.starts_with("The"), "{}", ran.stdout);
}

#[test]
fn named_data_is_fetched_once_and_read_as_its_text() {
    let hub = Hub::start();
    let llama = asset("tiny-llama");
    let ran = hub.online(EVAL, &[&llama, "--data", "wikitext2"]).ok();
    let file = "wikitext-2-raw-v1/test-00000-of-00001.parquet";
    let line = format!("`wikitext2`: fetching `{file}` of {WIKITEXT} from {}", hub.endpoint);
    assert!(ran.stderr.contains(&line), "{}", ran.stderr);
    let again = hub.offline(EVAL, &[&llama, "--data", "wikitext2"]).ok();
    assert_eq!((&again.stdout, again.stderr.as_str()), (&ran.stdout, ""));
    let local = hub.offline(EVAL, &[&llama, "--data", &asset("text/evaluation.txt")]).ok();
    assert_eq!(local.stdout, ran.stdout, "rows joined by a blank line are the text they were cut from");
}

/// The hash names the very token ids.
#[test]
fn without_data_the_calibration_text_is_the_training_split_of_wikitext2() {
    let hub = Hub::start();
    let llama = asset("tiny-llama");
    let hash = |ran: Ran| ran.json()["plan"]["calibration"]["hash"].as_str().unwrap().to_owned();
    let plan = format!("plan --json {GPTQ}");
    let default = hash(hub.online(&plan, &[&llama]));
    assert_eq!(default, hash(hub.offline(&plan, &[&llama, "--data", "wikitext2"])));
    assert_eq!(default, hash(hub.offline(&plan, &[&llama, "--data", &asset("text/calibration.txt")])));
    let test = hash(hub.online(&format!("{plan} --set calibration.split=test"), &[&llama]));
    assert_eq!(test, hash(hub.offline(&plan, &[&llama, "--data", &asset("text/evaluation.txt")])));
}

#[test]
fn what_the_hub_lacks_is_named_with_the_way_out() {
    let hub = Hub::start();
    let llama = asset("tiny-llama");
    refused_with(
        &hub.online(&format!("plan {RTN}"), &["org/tinny"]),
        1,
        "hub::not-found",
        &[&format!("there is no `org/tinny@main` at {}, nor a path of that name here", hub.endpoint), "hint: check name and revision"],
    );
    refused_with(
        &hub.online(EVAL, &[&llama, "--data", "ptb"]),
        1,
        "hub::not-found",
        &[&format!("data set `ptb`: there is no `FALcon6/ptb_text_only@main` at {}", hub.endpoint)],
    );
    refused_with(
        &hub.online(EVAL, &[&llama, "--data", "pile"]),
        2,
        "data::no-split",
        &["data set `pile` has no split `test` or `validation`", "hint: it has: train"],
    );
}

#[test]
fn offline_says_what_is_not_cached() {
    let hub = Hub::start();
    let llama = asset("tiny-llama");
    let way_out = |repo: &str| {
        format!("hint: unset HF_HUB_OFFLINE to fetch `{repo}`, or point HF_HUB_CACHE to a cache that has it (now `{}`)", hub.cache())
    };
    refused_with(
        &hub.offline(&format!("plan {RTN}"), &["org/tiny"]),
        1,
        "hub::offline",
        &["`org/tiny@main` is not in the cache, and HF_HUB_OFFLINE is set", &way_out("org/tiny")],
    );
    let missing = |split: &str| {
        let file = format!("wikitext-2-raw-v1/{split}-00000-of-00001.parquet");
        format!("`{file}` of data set `{WIKITEXT}` is not in the cache, and HF_HUB_OFFLINE is set")
    };
    refused_with(
        &hub.offline(EVAL, &[&llama, "--data", "wikitext2"]),
        1,
        "hub::offline",
        &[&format!("data set `wikitext2`: {}", missing("test")), &way_out("Salesforce/wikitext")],
    );
    refused_with(
        &hub.offline(&format!("plan {GPTQ}"), &[&llama]),
        2,
        "calibration::no-data",
        &[
            "a pass reads activations, no `--data` was given, and the default `wikitext2` cannot be fetched\n",
            &format!("caused by: data set `wikitext2`: {}", missing("train")),
            "hint: give a text or token file with `--data FILE`",
        ],
    );
}
