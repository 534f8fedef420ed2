//! The plugins that the user has added, each with the hash it had then.

use std::path::{Path, PathBuf};

use qfw_core::checkpoint::replace_file;
use qfw_core::error::did_you_mean;
use qfw_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::package::{Package, hash_file};
use crate::plugin_error;

/// A plugin that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AddedPlugin {
    /// Its id.
    pub id: String,
    /// The package's directory, absolute.
    pub path: PathBuf,
    /// BLAKE3 of its library when it was added.
    pub blake3: String,
}

/// The list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Added {
    /// By id.
    #[serde(default, rename = "plugin")]
    pub plugins: Vec<AddedPlugin>,
}

impl Added {
    /// Reads the list; a missing file is an empty one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(file: &Path) -> Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => toml::from_str(&text).map_err(|e| {
                plugin_error("plugin::list", format!("`{}` cannot be read: {}", file.display(), e.to_string().trim_end()))
                    .hint("repair it, or remove it and add the plugins again")
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::io(file, "read", e)),
        }
    }

    fn write(&self, file: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::internal(e.to_string()))?;
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
        }
        replace_file(file, text.as_bytes())
    }

    /// Adds the package in `dir`, or pins it anew, and writes the list. None of its code runs.
    ///
    /// # Errors
    /// If it is no package, its library is not what its manifest says, or others than the user could change it.
    pub fn add(&mut self, dir: &Path, file: &Path) -> Result<Package> {
        let dir = dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?;
        let package = Package::open(&dir)?;
        package.manifest.fits()?;
        package.check_permissions()?;
        let hash = hash_file(&package.library()?)?;
        package.check_manifest_hash(&hash)?;
        self.plugins.retain(|p| p.id != package.manifest.id);
        self.plugins.push(AddedPlugin { id: package.manifest.id.clone(), path: dir, blake3: hash });
        self.plugins.sort_by(|a, b| a.id.cmp(&b.id));
        self.write(file)?;
        Ok(package)
    }

    /// Forgets a plugin and writes the list; its files stay.
    ///
    /// # Errors
    /// If it is not there.
    pub fn remove(&mut self, id: &str, file: &Path) -> Result<AddedPlugin> {
        let Some(at) = self.plugins.iter().position(|p| p.id == id) else {
            let known: Vec<&str> = self.plugins.iter().map(|p| p.id.as_str()).collect();
            let nearest = did_you_mean(id, known.iter().copied());
            let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::config("plugin::unknown", format!("no plugin `{id}` was added{nearest}")).hint(format!("added: {list}")));
        };
        let plugin = self.plugins.remove(at);
        self.write(file)?;
        Ok(plugin)
    }
}
