//! The words of a target's language, for libFuzzer to try: those of its seeds, and numbers that readers trip over.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Written where a number was, they are its neighbours in other types, or none at all.
const NUMBERS: [&str; 16] = [
    "-1",
    "0",
    "1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "1e-320",
    "-0.0",
    "1.5",
    "null",
    "[]",
];

/// Longest word; longer ones are data.
const LONGEST: usize = 40;

/// The dictionary of a target with these seeds, as libFuzzer reads it: a quoted word a line.
pub fn dictionary(seeds: &[(String, Vec<u8>)]) -> String {
    let in_word = |b: &u8| b.is_ascii_alphanumeric() || b"_-.".contains(b);
    let runs = seeds.iter().flat_map(|(_, bytes)| bytes.split(|b| !in_word(b)));
    let words = runs.filter(|w| (3..=LONGEST).contains(&w.len())).map(|w| String::from_utf8_lossy(w).into_owned());
    let all: BTreeSet<String> = words.chain(NUMBERS.map(String::from)).collect();
    all.iter().fold(String::new(), |mut text, word| {
        let _ = writeln!(text, "\"{word}\"");
        text
    })
}
