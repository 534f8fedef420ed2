//! A directory with a manifest and a library.

use std::fs::File;
use std::path::{Path, PathBuf};

use qfw_core::{Error, Result};

use crate::manifest::{FILE, Manifest};
use crate::plugin_error;

/// How a package was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The user added it, when its library had this hash.
    Added(String),
    /// It lies where plugins are looked for.
    Found,
}

/// A package.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// How it was found.
    pub origin: Origin,
}

/// A path as a shell takes it, whatever is in it.
pub fn shell_word(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// BLAKE3 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read, or is none: a pipe would be waited for.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let known = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if !known.is_file() {
        return Err(plugin_error("plugin::missing", format!("`{}` is no file", path.display())));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    hasher.update_reader(file).map_err(|e| Error::io(path, "read", e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

impl Package {
    /// The package in `dir`; its library is not opened.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self { dir: dir.to_owned(), manifest: Manifest::read(dir)?, origin: Origin::Found })
    }

    /// The library for this program.
    ///
    /// # Errors
    /// If there is none.
    pub fn library(&self) -> Result<PathBuf> {
        Ok(self.dir.join(&self.manifest.here()?.file))
    }

    /// The line that adds it.
    pub(crate) fn how_to_add(&self) -> String {
        format!("run `qfw plugin add {}`", shell_word(&self.dir))
    }

    /// Whether a run may use it without its user having added it.
    pub(crate) fn usable(&self, allow_unpinned: bool) -> bool {
        allow_unpinned || self.origin != Origin::Found
    }

    /// Refuses a library that is not the one its manifest names.
    pub(crate) fn check_manifest_hash(&self, hash: &str) -> Result<()> {
        let wanted = &self.manifest.here()?.blake3;
        if wanted.eq_ignore_ascii_case(hash) {
            return Ok(());
        }
        let message = format!("the library of plugin `{}` has the hash {hash}, and its manifest says {wanted}", self.manifest.id);
        Err(plugin_error("plugin::hash", message).hint("get the package again; whoever built it has to write the hash after the build"))
    }

    /// Refuses what others than its owner could replace.
    pub(crate) fn check_permissions(&self) -> Result<()> {
        #[cfg(unix)]
        for path in [&self.dir, &self.dir.join(FILE), &self.library()?] {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?.permissions().mode();
            if mode & 0o022 != 0 {
                let who = if mode & 0o002 != 0 { "anybody" } else { "its group" };
                let message = format!("{who} may write to `{}` of plugin `{}`", path.display(), self.manifest.id);
                return Err(plugin_error("plugin::permissions", message).hint(format!("run `chmod go-w {}`", shell_word(path))));
            }
        }
        Ok(())
    }

    /// Everything that is to be known before the library may be opened: its path, and its hash.
    pub(crate) fn trusted(&self, allow_unpinned: bool) -> Result<(PathBuf, String)> {
        let id = &self.manifest.id;
        self.manifest.fits()?;
        let library = self.library()?;
        if !library.is_file() {
            let message = format!("the library `{}` of plugin `{id}` is not there", library.display());
            return Err(plugin_error("plugin::missing", message).hint(format!("get it again, or run `qfw plugin remove {id}`")));
        }
        self.check_permissions()?;
        let hash = hash_file(&library)?;
        match &self.origin {
            Origin::Added(pinned) if *pinned != hash => {
                let message = format!("the library of plugin `{id}` has changed: its hash is {hash}, and was {pinned} when it was added");
                return Err(plugin_error("plugin::hash", message)
                    .hint(format!("if that is meant, run `qfw plugin add {}` to pin it anew", shell_word(&self.dir))));
            }
            Origin::Found if !allow_unpinned => {
                let message = format!("plugin `{id}` lies in `{}`, but was not added", self.dir.display());
                return Err(plugin_error("plugin::not-added", message).hint(self.how_to_add()));
            }
            _ => {}
        }
        self.check_manifest_hash(&hash)?;
        Ok((library, hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_be_pasted() {
        assert_eq!(shell_word(Path::new("/my plugins/it's $HOME")), r"'/my plugins/it'\''s $HOME'");
    }
}
