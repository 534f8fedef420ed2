//! Files beside the weights, and files that appear whole or not at all.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{SafetensorsWriter, TensorDecl, writer::ContainerWriter};
use crate::error::{Error, Result};

/// Writes `bytes` to a temporary file beside `path`, syncs it, and renames it over `path`.
///
/// # Errors
/// If writing fails; `path` is then as it was.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp~");
    let mut file = File::create(&temporary).map_err(|e| Error::io(&temporary, "create", e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| Error::io(&temporary, "write", e))?;
    drop(file);
    rename_file(&temporary, path)
}

/// Renames a file that is synced over `path`, durably.
///
/// # Errors
/// If it cannot be renamed.
pub fn rename_file(from: &Path, path: &Path) -> Result<()> {
    std::fs::rename(from, path).map_err(|e| Error::io(path, "rename into place", e))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes renames in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, "sync", e))
}

/// Writes one safetensors file holding `tensors`, durably.
///
/// # Errors
/// If writing fails.
pub fn write_small(path: &Path, tensors: Vec<(TensorDecl, Vec<u8>)>) -> Result<()> {
    let (decls, data): (Vec<TensorDecl>, Vec<Vec<u8>>) = tensors.into_iter().unzip();
    let dir = path.parent().unwrap_or(Path::new("."));
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("shard");
    let temporary = format!("{stem}.tmp~");
    let mut writer = SafetensorsWriter::create(dir, &temporary, &decls, u64::MAX, &Default::default())?;
    for (decl, bytes) in decls.iter().zip(&data) {
        writer.write(&decl.name, bytes)?;
    }
    writer.finish()?;
    rename_file(&dir.join(format!("{temporary}.safetensors")), path)
}

/// Adds name, size and evenly spaced samples of a file. Models that were tuned further from the same one differ in nearly every value,
/// so that samples tell them apart.
pub(super) fn hash_samples(path: &Path, hasher: &mut blake3::Hasher) -> Result<()> {
    const SAMPLES: u64 = 64;
    const LENGTH: u64 = 4096;
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let size = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
    // A cached snapshot and its copy elsewhere are the same model, so only the last part of the path counts.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hasher.update(format!("{name} {size}\n").as_bytes());
    let mut sample = vec![0; LENGTH.min(size) as usize];
    for i in 0..SAMPLES {
        let start = (size - sample.len() as u64) / (SAMPLES - 1) * i;
        file.read_exact_at(&mut sample, start).map_err(|e| Error::io(path, "read", e))?;
        hasher.update(&sample);
    }
    Ok(())
}

/// Where tools say how the weights are quantized if not in `config.json` (AutoGPTQ, AutoAWQ, ModelOpt).
const QUANTIZATION: [&str; 3] = ["quantize_config.json", "quant_config.json", "hf_quant_config.json"];

/// What such a file in `dir` says, if there is one.
///
/// # Errors
/// If it cannot be read or is no JSON object.
pub(super) fn quantization_beside(dir: &Path) -> Result<Option<Value>> {
    let Some(path) = QUANTIZATION.iter().map(|name| dir.join(name)).find(|path| path.exists()) else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    json_object(&path, &text).map(Some)
}

/// The JSON object that `text` of `path` is.
///
/// # Errors
/// If it is none.
pub(super) fn json_object(path: &Path, text: &str) -> Result<Value> {
    let bad = |what: String| Error::input("checkpoint::bad-config", format!("`{}` is not {what}", path.display()));
    let value: Value = serde_json::from_str(text).map_err(|e| bad(format!("valid JSON: {e}")))?;
    if value.is_object() { Ok(value) } else { Err(bad("a JSON object".to_owned())) }
}

/// Files of a checkpoint directory that are neither weights nor written anew: tokenizer, templates, code.
pub(super) fn side_files(dir: &Path) -> Result<Vec<PathBuf>> {
    const WEIGHTS: [&str; 13] =
        ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "onnx_data", "gguf", "irpa", "tmp~", "ot"];
    const OWN: [&str; 5] = ["config.json", "qfw.json", "qfw-run.jsonl", "README.md", "model.safetensors.index.json"];
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
        let entry = entry.map_err(|e| Error::io(dir, "list", e))?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        let extension = Path::new(text).extension().and_then(|e| e.to_str()).unwrap_or("");
        let file = std::fs::metadata(entry.path()).is_ok_and(|m| m.is_file());
        if file
            && !text.starts_with('.')
            && !WEIGHTS.contains(&extension)
            && !text.ends_with(".onnx.data")
            && !OWN.contains(&text)
            && !QUANTIZATION.contains(&text)
            && !text.ends_with(".index.json")
        {
            out.push(PathBuf::from(text));
        }
    }
    out.sort();
    Ok(out)
}

/// The `.gguf` file of a directory without a configuration, if it holds exactly one.
pub(super) fn single_gguf(dir: &Path) -> Result<Option<PathBuf>> {
    if !dir.is_dir() || dir.join("config.json").exists() {
        return Ok(None);
    }
    the_one(dir, "gguf", with_extension(dir, "gguf")?)
}

/// The `.irpa` file of a directory without safetensors, if it holds exactly one.
pub(super) fn single_archive(dir: &Path) -> Result<Option<PathBuf>> {
    let found = with_extension(dir, "irpa")?;
    if found.is_empty() || !with_extension(dir, "safetensors")?.is_empty() {
        return Ok(None);
    }
    the_one(dir, "irpa", found)
}

/// What could have been meant by a directory that is no checkpoint: the checkpoints directly below it, as a run in several formats makes them.
pub(super) fn checkpoints_in(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
        let path = entry.map_err(|e| Error::io(dir, "list", e))?.path();
        if path.join("config.json").is_file() || matches!(single_gguf(&path), Ok(Some(_))) {
            found.push(format!("`{}`", path.display()));
        }
    }
    found.sort();
    Ok(found)
}

fn with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
        let path = entry.map_err(|e| Error::io(dir, "list", e))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn the_one(dir: &Path, extension: &str, mut found: Vec<PathBuf>) -> Result<Option<PathBuf>> {
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => {
            Err(Error::input("checkpoint::ambiguous", format!("`{}` holds {n} .{extension} files", dir.display())).hint("name one of them"))
        }
    }
}
