//! Several files in one input: parts with a line between them that no JSON has.

/// What stands between two files.
pub(crate) const BETWEEN: &[u8] = b"\n=====\n";

/// The parts of `data`.
pub(crate) fn parts(data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(BETWEEN.len()).position(|w| w == BETWEEN) {
        parts.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    parts.push(rest);
    parts
}

/// A safetensors file: the length of `header`, `header`, `data`.
pub(crate) fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The header and the data of a sound safetensors file.
pub(crate) fn split(file: &[u8]) -> (&[u8], &[u8]) {
    let length = file.first_chunk().map_or(0, |l| u64::from_le_bytes(*l)) as usize;
    file[8..].split_at(length)
}
