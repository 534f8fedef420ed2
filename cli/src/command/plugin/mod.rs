//! `qfw plugin`

mod check;
mod new;
mod pack;
mod vendor;

use std::path::Path;

use qfw_core::error::did_you_mean;
use qfw_core::{Error, Result};
use qfw_loader::{Added, Catalog, Origin, Package, hash_file};
use serde_json::json;

use super::say_json;
use crate::arguments::{Plugin, PluginCommand};
use crate::dynamic;
use crate::terminal::say;

pub(crate) fn run(a: &Plugin) -> Result<()> {
    match &a.command {
        PluginCommand::Add { dir } => add(dir),
        PluginCommand::Remove { id } => remove(id),
        PluginCommand::Info { plugin, json } => info(plugin, *json),
        PluginCommand::Pack { dir, library } => pack::run(dir, library),
        PluginCommand::New { name, phase, lang } => new::run(Path::new(name), phase, lang),
        PluginCommand::Check { dir, seed, case, skip, in_process, json } => {
            let (case, skip) = (case.as_deref(), skip.as_deref());
            check::run(&check::Asked { dir, seed: *seed, case, skip, in_process: *in_process, json: *json })
        }
    }
}

fn add(dir: &Path) -> Result<()> {
    let file = dynamic::list_file()?;
    let mut added = Added::read(&file)?;
    let before = added.clone();
    let package = added.add(dir, &file)?;
    let m = &package.manifest;
    if let Some(old) = before.plugins.iter().find(|p| p.id == m.id && p.path != package.dir) {
        say(&format!("`{}` was in `{}` before; that is not loaded any more", m.id, old.path.display()));
    }
    let algos: Vec<&str> = m.algos.iter().map(|a| a.id.as_str()).chain(m.formats.iter().map(|f| f.id.as_str())).collect();
    say(&format!("`{}` {} may be loaded from `{}`; it provides {}", m.id, m.version, package.dir.display(), algos.join(", ")));
    say("it is native code and runs with your rights");
    Ok(())
}

fn remove(id: &str) -> Result<()> {
    let file = dynamic::list_file()?;
    let removed = Added::read(&file)?.remove(id, &file)?;
    say(&format!("`{id}` is not loaded any more; its files in `{}` stay", removed.path.display()));
    Ok(())
}

/// The package of that id or in that directory.
fn find(name: &str, catalog: &Catalog) -> Result<Package> {
    if let Some(package) = catalog.find(name) {
        return Ok(package.clone());
    }
    let dir = Path::new(name);
    if dir.is_dir() {
        let dir = dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?;
        // One that was added is known with its hash.
        let known = catalog.packages.iter().find(|p| p.dir.canonicalize().is_ok_and(|known| known == dir));
        return known.cloned().map_or_else(|| Package::open(&dir), Ok);
    }
    let known: Vec<&str> = catalog.packages.iter().map(|p| p.manifest.id.as_str()).collect();
    let nearest = did_you_mean(name, known.iter().copied());
    let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(Error::config("plugin::unknown", format!("there is no plugin `{name}`{nearest}")).hint(format!("plugins: {list}")))
}

fn info(name: &str, as_json: bool) -> Result<()> {
    let package = find(name, &dynamic::catalog())?;
    let m = &package.manifest;
    let library = package.library();
    let hash = library.as_ref().ok().and_then(|l| hash_file(l).ok());
    let pinned = match &package.origin {
        Origin::Added(hash) => Some(hash.clone()),
        Origin::Found => None,
    };
    let state = match (&pinned, &hash) {
        (None, _) => "not added",
        (Some(_), None) => "its library is missing",
        (Some(pinned), Some(hash)) if pinned == hash => "added",
        (Some(_), Some(_)) => "its library has changed since it was added",
    };
    if as_json {
        return say_json(&json!({
            "manifest": m, "path": package.dir, "state": state, "blake3": hash, "pinned": pinned,
        }));
    }
    say(&format!("{} {}  ({state})", m.id, m.version));
    say(&format!("  path       {}", package.dir.display()));
    say(&format!("  interface  {}.{}", m.abi.major, m.abi.minor));
    if let Some(license) = &m.license {
        say(&format!("  license    {license}"));
    }
    say(&format!("  blake3     {}", hash.as_deref().unwrap_or("unknown")));
    for a in &m.algos {
        say(&format!("  algorithm  {} [{}] {}", a.id, a.phase, a.summary));
    }
    for f in &m.formats {
        say(&format!("  format     {} {}", f.id, f.summary));
    }
    Ok(())
}
