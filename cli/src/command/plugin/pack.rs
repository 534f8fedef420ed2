//! `qfw plugin pack`: a library that was just built becomes that of its package.

use std::path::Path;

use qfw_core::checkpoint::replace_file;
use qfw_core::{Error, Result};
use qfw_loader::{Manifest, hash_file, shell_word, target};
use toml::Table;

use crate::terminal::say;

pub(crate) fn run(dir: &Path, library: &Path) -> Result<()> {
    let manifest = Manifest::read(dir)?;
    let name = library.file_name().ok_or_else(|| Error::config("config::invalid", format!("`{}` names no file", library.display())))?;
    let to = dir.join(name);
    let same = to.canonicalize().ok().is_some_and(|to| library.canonicalize().is_ok_and(|from| from == to));
    if !same {
        let bytes = std::fs::read(library).map_err(|e| Error::io(library, "read", e))?;
        replace_file(&to, &bytes)?;
    }
    let hash = hash_file(&to)?;
    // As a table, so that targets of other machines and the order of keys stay.
    let path = dir.join("plugin.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| Error::input("plugin::manifest", e.to_string()))?;
    let targets = table.entry("target").or_insert_with(|| Table::new().into());
    let mut here = Table::new();
    here.insert("file".to_owned(), name.to_string_lossy().into_owned().into());
    here.insert("blake3".to_owned(), hash.clone().into());
    if let Some(targets) = targets.as_table_mut() {
        targets.insert(target(), here.into());
    }
    let text = toml::to_string(&table).map_err(|e| Error::internal(e.to_string()))?;
    replace_file(&path, text.as_bytes())?;
    say(&format!("`{}` {} for {}: {hash}", manifest.id, manifest.version, target()));
    say(&format!("next: qfw plugin check {0}; qfw plugin add {0}", shell_word(dir)));
    Ok(())
}
