//! Datasets of sharktank: one that Brevitas exported, whole and damaged.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use qfw_verify::verify;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/export-shark/tests/fixtures/brevitas")
}

#[test]
fn a_dataset_of_brevitas_is_read_and_is_itself() {
    let report = verify(&fixture(), Some(&fixture())).unwrap();
    assert!(report.equal && report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.container, "shark");
}

/// Whatever byte is wrong, there is an error, a finding or a difference, or it is a byte that nobody reads; and never a panic.
#[test]
fn no_damage_is_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json")).unwrap();
    let sound = std::fs::read(fixture().join("dataset.irpa")).unwrap();
    let file = dir.path().join("dataset.irpa");
    let (mut told, mut all) = (0, 0);
    for at in (0..sound.len()).step_by(11) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x5a;
        std::fs::write(&file, bytes).unwrap();
        all += 1;
        told += usize::from(verify(dir.path(), Some(&fixture())).map_or(true, |r| !r.equal || !r.findings.is_empty()));
    }
    // Most of so small a file is descriptions and padding.
    assert!(told > all / 4, "{told} of {all}");
    // Behind its last numbers the file is padded.
    for length in [0, 4, 87, 88, 1000, sound.len() / 2] {
        std::fs::write(&file, &sound[..length]).unwrap();
        assert!(verify(dir.path(), Some(&fixture())).is_err(), "{length}");
    }
}
