//! Which files of a model repository are fetched.

use super::HubId;
use crate::checkpoint::adapter;
use crate::error::{Error, Result};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Path inside the repository, with `/`.
    pub(super) path: String,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Of its contents, in the Hub's own ways; it names them in the cache.
    pub(super) hash: String,
}

/// Larger side files are data, not part of a tokenizer.
const SIDE_FILE_LIMIT: u64 = 100 << 20;
const SIDE_FILES: [&str; 9] = ["json", "txt", "jinja", "model", "tiktoken", "py", "md", "yaml", "vocab"];
/// Folders with the same model for another program.
const FOREIGN: [&str; 7] = ["onnx", "openvino", "coreml", "original", "gguf", "mlx", "metal"];

/// `config.json`, the weights the reader would take, with those of an adapter beside them, and the small files.
pub(super) fn choose<'a>(listed: &'a [Listed], id: &HubId) -> Result<Vec<&'a Listed>> {
    let weights = weights(listed);
    if weights.is_empty() {
        return Err(no_weights(listed, id));
    }
    if !listed.iter().any(|f| f.path == "config.json") {
        return Err(Error::input("hub::no-config", format!("`{id}` has no config.json")).hint("is it an adapter or a part of a model?"));
    }
    let branches = listed.iter().filter(|f| f.path == adapter::WEIGHTS);
    let side = listed.iter().filter(|f| is_side_file(f));
    Ok(weights.iter().copied().chain(branches).chain(side).collect())
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Mirrors the reader's order: shards if there is an index, else `model.safetensors`, else every shard. `consolidated*` is the same model in its
/// maker's naming.
fn weights(listed: &[Listed]) -> Vec<&Listed> {
    let shards: Vec<&Listed> = listed.iter().filter(|f| !f.path.contains('/') && f.path.ends_with(".safetensors")).collect();
    let indexed = listed.iter().any(|f| f.path == INDEX);
    if let Some(single) = shards.iter().find(|f| f.path == SINGLE && !indexed) {
        return vec![single];
    }
    let named: Vec<&Listed> = shards.iter().filter(|f| !f.path.starts_with("consolidated")).copied().collect();
    if named.is_empty() { shards } else { named }
}

fn no_weights(listed: &[Listed], id: &HubId) -> Error {
    let of = |endings: &[&str]| listed.iter().find(|f| endings.iter().any(|e| f.path.ends_with(e)));
    if let Some(gguf) = of(&[".gguf"]) {
        return Error::input("hub::no-weights", format!("`{id}` has no safetensors weights, but GGUF files such as `{}`", gguf.path))
            .hint("download the one you want and give its path");
    }
    if let Some(pickle) = of(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return Error::input(
            "hub::no-weights",
            format!("`{id}` has only pickled weights (`{}`), which can run code when read", pickle.path),
        )
        .hint("look for a revision or a copy with safetensors; pickles are never read");
    }
    Error::input("hub::no-weights", format!("`{id}` has no safetensors weights")).hint("is it a model?")
}

fn is_side_file(file: &Listed) -> bool {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let foreign = folder.split('/').any(|part| FOREIGN.contains(&part) || part.starts_with('.'));
    let known = name.rsplit_once('.').is_some_and(|(_, ending)| SIDE_FILES.contains(&ending));
    let legal = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| name.starts_with(start));
    !foreign && !name.starts_with('.') && (known || legal) && file.size <= SIDE_FILE_LIMIT
}

/// Whether a path stays inside the directory it is joined to.
pub(super) fn is_plain_path(path: &str) -> bool {
    !path.contains('\\') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its configuration alone would name weights that are not there.
    #[test]
    fn an_adapter_comes_with_the_weights() {
        let listed =
            ["config.json", "model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "other/x.safetensors"]
                .map(|path| Listed { path: path.to_owned(), size: 1, hash: String::new() });
        let id = HubId::parse("a/b").unwrap();
        let chosen: Vec<&str> = choose(&listed, &id).unwrap().iter().map(|f| f.path.as_str()).collect();
        assert_eq!(chosen, ["model.safetensors", "adapter/adapter_model.safetensors", "config.json", "adapter/adapter_config.json"]);
    }
}
