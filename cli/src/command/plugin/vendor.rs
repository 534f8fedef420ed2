//! What a plugin needs to build, carried in the program: the header, and the crate without dependencies around it.

/// The files of the crate, by their paths in it.
pub(super) const CRATE: &[(&str, &str)] = &[
    ("Cargo.toml", MANIFEST),
    ("include/qfw_plugin.h", qfw_abi::HEADER),
    ("src/lib.rs", include_str!("../../../../core/abi/src/lib.rs")),
    ("src/layout.rs", include_str!("../../../../core/abi/src/layout.rs")),
    ("src/raw.rs", include_str!("../../../../core/abi/src/raw.rs")),
    ("src/plugin/mod.rs", include_str!("../../../../core/abi/src/plugin/mod.rs")),
    ("src/plugin/calls.rs", include_str!("../../../../core/abi/src/plugin/calls.rs")),
    ("src/plugin/contain.rs", include_str!("../../../../core/abi/src/plugin/contain.rs")),
    ("src/plugin/export.rs", include_str!("../../../../core/abi/src/plugin/export.rs")),
    ("src/plugin/format.rs", include_str!("../../../../core/abi/src/plugin/format.rs")),
    ("src/plugin/host.rs", include_str!("../../../../core/abi/src/plugin/host.rs")),
    ("src/plugin/numeric.rs", include_str!("../../../../core/abi/src/plugin/numeric.rs")),
    ("src/plugin/options.rs", include_str!("../../../../core/abi/src/plugin/options.rs")),
    ("src/plugin/output.rs", include_str!("../../../../core/abi/src/plugin/output.rs")),
    ("src/plugin/site.rs", include_str!("../../../../core/abi/src/plugin/site.rs")),
];

/// Its manifest outside of the workspace.
const MANIFEST: &str = concat!(
    "[package]\nname = \"qfw-abi\"\ndescription = \"The C interface of run-time plugins of qfw, and a safe wrapper to write them in Rust\"\nversion = \"",
    env!("CARGO_PKG_VERSION"),
    "\"\nedition = \"2024\"\nlicense = \"MIT OR Apache-2.0\"\n"
);

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn every_file_of_the_crate_is_carried() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/abi");
        for dir in ["src", "src/plugin", "include"] {
            for entry in std::fs::read_dir(root.join(dir)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(super::CRATE.contains(&(name, text.as_str())), "{name}");
                }
            }
        }
    }
}
