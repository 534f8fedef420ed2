//! Where the workspace is and which files belong to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use qfw_core::{Error, Result};

/// The root of the workspace this crate was built in.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The project's files, relative to `root`, sorted: what git tracks, or, in a tree without git, all but build outputs and hidden folders.
///
/// # Errors
/// `io` if a folder cannot be listed.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = match tracked(root) {
        Some(files) => files,
        None => {
            let mut found = Vec::new();
            walk(root, Path::new(""), &mut found)?;
            found
        }
    };
    // A tracked file that was just deleted is still in the index.
    files.retain(|file| root.join(file).is_file());
    files.sort();
    Ok(files)
}

fn tracked(root: &Path) -> Option<Vec<PathBuf>> {
    let output = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let names = String::from_utf8(output.stdout).ok()?;
    let files: Vec<PathBuf> = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    (!files.is_empty()).then_some(files)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let path = root.join(folder);
    let entries = std::fs::read_dir(&path).map_err(|e| Error::io(&path, "list", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(&path, "list", e))?;
        let name = entry.file_name();
        let relative = folder.join(&name);
        let text = name.to_string_lossy();
        let hidden = text.starts_with('.') && text != ".ci" && text != ".cargo";
        if hidden || relative == Path::new("target") {
            continue;
        }
        if entry.path().is_dir() { walk(root, &relative, found)? } else { found.push(relative) }
    }
    Ok(())
}
