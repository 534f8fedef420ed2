//! `plugin.toml`: what a package says of itself. Listings read it and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use qfw_core::algorithm::Phase;
use qfw_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::plugin_error;

/// The version of the interface that a library was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestAbi {
    /// Has to be that of the program.
    pub major: u32,
    /// At most that of the program.
    pub minor: u32,
}

/// What a package holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestKind {
    /// A library.
    #[default]
    Cdylib,
}

/// An algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ManifestAlgo {
    /// Its id.
    pub id: String,
    /// When it runs.
    pub phase: Phase,
    /// One line for listings.
    pub summary: String,
    /// It reads no activations.
    #[serde(default)]
    pub weight_only: bool,
}

/// A number format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ManifestFormat {
    /// Its id.
    pub id: String,
    /// One line for listings.
    pub summary: String,
}

/// The library for one kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ManifestTarget {
    /// Its name, in the package's directory.
    pub file: String,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// Reverse domain name of whoever makes it, and a name.
    pub id: String,
    /// Version of the plugin.
    pub version: String,
    /// The interface.
    pub abi: ManifestAbi,
    /// What it holds.
    #[serde(default)]
    pub kind: ManifestKind,
    /// Its licence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Algorithms.
    #[serde(default, rename = "algo", skip_serializing_if = "Vec::is_empty")]
    pub algos: Vec<ManifestAlgo>,
    /// Number formats.
    #[serde(default, rename = "format", skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<ManifestFormat>,
    /// Libraries by target, such as `x86_64-unknown-linux-gnu`.
    #[serde(default, rename = "target", skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, ManifestTarget>,
}

/// Name of the file.
pub(crate) const FILE: &str = "plugin.toml";

/// The target that this program was built for, by its usual name.
pub fn target() -> String {
    let arch = std::env::consts::ARCH;
    let rest = match std::env::consts::OS {
        "linux" if cfg!(target_env = "musl") => "unknown-linux-musl",
        "linux" => "unknown-linux-gnu",
        "macos" => "apple-darwin",
        "windows" if cfg!(target_env = "gnu") => "pc-windows-gnu",
        "windows" => "pc-windows-msvc",
        other => return format!("{arch}-unknown-{other}"),
    };
    format!("{arch}-{rest}")
}

/// Letters, digits, `-`, `_` and dots inside; a `-` at the beginning would be an argument of a command.
fn is_id(id: &str) -> bool {
    !id.starts_with('-')
        && id.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'))
}

impl Manifest {
    /// Reads the manifest of the package in `dir`.
    ///
    /// # Errors
    /// If it cannot be read, is no manifest, or contradicts itself.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        // A pipe would be waited for.
        if !path.is_file() {
            let message = format!("`{}` is no package: there is no file `{FILE}` in it", dir.display());
            return Err(plugin_error("plugin::manifest", message).hint("name the directory that holds it"));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        Self::parse(&text).map_err(|e| e.within(format!("`{}`", path.display())))
    }

    /// A manifest from its text.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let manifest: Self = toml::from_str(text).map_err(|e| plugin_error("plugin::manifest", e.to_string().trim_end().to_owned()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        let broken = |message: String| Err(plugin_error("plugin::manifest", message));
        if !is_id(&self.id) || !self.id.contains('.') {
            return broken(format!("the id `{}` is no reverse domain name, such as `com.example.name`", self.id));
        }
        if semver::Version::parse(&self.version).is_err() {
            return broken(format!("the version `{}` of `{}` is not of the form 1.2.3", self.version, self.id));
        }
        if self.algos.is_empty() && self.formats.is_empty() {
            return broken(format!("`{}` provides nothing", self.id));
        }
        let mut seen = BTreeSet::new();
        let algos = self.algos.iter().map(|a| ("algorithm", &a.id, &a.summary));
        for (kind, id, summary) in algos.chain(self.formats.iter().map(|f| ("format", &f.id, &f.summary))) {
            if !is_id(id) {
                return broken(format!("the {kind} id `{id}` is not made of letters, digits, `-`, `_` and dots, or begins with `-`"));
            }
            if summary.chars().any(char::is_control) {
                return broken(format!("the summary of `{id}` is longer than a line, or holds control characters"));
            }
            if !seen.insert((kind, id)) {
                return broken(format!("{kind} `{id}` occurs twice"));
            }
        }
        if self.license.as_ref().is_some_and(|l| l.chars().any(char::is_control)) {
            return broken(format!("the license of `{}` holds control characters", self.id));
        }
        for (name, target) in &self.targets {
            let plain = !target.file.is_empty()
                && !target.file.chars().any(char::is_control)
                && Path::new(&target.file).components().count() == 1
                && !target.file.contains(['/', '\\'])
                && target.file != "..";
            if !plain {
                return broken(format!("the file `{}` for {name} does not lie in the package", target.file));
            }
        }
        Ok(())
    }

    /// The library for this program.
    ///
    /// # Errors
    /// If there is none.
    pub fn here(&self) -> Result<&ManifestTarget> {
        let here = target();
        self.targets.get(&here).ok_or_else(|| {
            let there: Vec<&str> = self.targets.keys().map(String::as_str).collect();
            let hint = match there[..] {
                [] => "build it, and write the library into its manifest with `qfw plugin pack DIR --library FILE`".to_owned(),
                _ => format!("it has one for: {}", there.join(", ")),
            };
            plugin_error("plugin::target", format!("plugin `{}` has no library for {here}", self.id)).hint(hint)
        })
    }

    /// Whether a program of this version of the interface can load it.
    ///
    /// # Errors
    /// If not, with both versions.
    pub fn fits(&self) -> Result<()> {
        abi_fits(&self.id, self.abi.major, self.abi.minor)
    }
}

/// Whether a plugin of that version of the interface can be loaded.
pub(crate) fn abi_fits(id: &str, major: u32, minor: u32) -> Result<()> {
    use qfw_abi::raw::{MAJOR, MINOR};
    if major != MAJOR {
        let message = format!("plugin `{id}` is made for version {major}.{minor} of the interface, and this program has {MAJOR}.{MINOR}");
        let hint = if major > MAJOR { "use a newer qfw" } else { "get a build of the plugin for this version of qfw" };
        return Err(plugin_error("plugin::abi", message).hint(hint));
    }
    if minor > MINOR {
        let message = format!("plugin `{id}` counts on version {major}.{minor} of the interface, and this program has {MAJOR}.{MINOR}");
        return Err(plugin_error("plugin::abi", message).hint("use a newer qfw"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "id = \"com.example.near\"\nversion = \"0.1.0\"\nabi = { major = 1, minor = 0 }\n\
        [[algo]]\nid = \"near\"\nphase = \"round\"\nsummary = \"nearest\"\n\
        [target.x86_64-unknown-linux-gnu]\nfile = \"libnear.so\"\nblake3 = \"00\"\n";

    #[test]
    fn a_manifest_is_read_strictly() {
        let m = Manifest::parse(GOOD).unwrap();
        assert_eq!((m.id.as_str(), m.algos[0].phase, m.algos[0].weight_only), ("com.example.near", Phase::Round, false));
        let message = |from: &str, to: &str| Manifest::parse(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert_eq!(message("com.example.near", "near"), "the id `near` is no reverse domain name, such as `com.example.name`");
        assert_eq!(message("\"0.1.0\"", "\"new\""), "the version `new` of `com.example.near` is not of the form 1.2.3");
        let summary = "the summary of `near` is longer than a line, or holds control characters";
        assert_eq!(message("nearest", "near\\nest"), summary);
        assert_eq!(message("nearest", "\\u001b[2J"), summary);
        assert_eq!(message("libnear.so", ""), "the file `` for x86_64-unknown-linux-gnu does not lie in the package");
        assert_eq!(
            message("libnear.so", "../libnear.so"),
            "the file `../libnear.so` for x86_64-unknown-linux-gnu does not lie in the package"
        );
        assert!(message("summary", "sumary").contains("unknown field `sumary`"));
        assert!(message("\"round\"", "\"rnd\"").contains("unknown variant `rnd`"));
        let twice = GOOD.replace("[target", "[[algo]]\nid = \"near\"\nphase = \"round\"\nsummary = \"again\"\n[target");
        assert_eq!(Manifest::parse(&twice).unwrap_err().to_string(), "algorithm `near` occurs twice");
    }

    #[test]
    fn versions_of_the_interface_are_compared() {
        assert!(abi_fits("a.b", 1, 0).is_ok());
        let of = |major, minor| {
            let e = abi_fits("a.b", major, minor).unwrap_err();
            (e.to_string(), e.hint_text().unwrap_or_default().to_owned())
        };
        assert_eq!(
            of(2, 0),
            ("plugin `a.b` is made for version 2.0 of the interface, and this program has 1.0".to_owned(), "use a newer qfw".to_owned())
        );
        assert_eq!(of(1, 7).0, "plugin `a.b` counts on version 1.7 of the interface, and this program has 1.0");
    }
}
