//! Data sets that go by name: where the Hub has them, which file is which split, and how published work reads it.
//!
//! | name | rows become text | published use |
//! |---|---|---|
//! | `wikitext2` | joined by a blank line | GPTQ's `datautils.py` and its followers: train and test; Brevitas evaluates on validation |
//! | `c4` | documents of the first shard | Brevitas calibrates on 10 000 documents; GPTQ's `get_c4_new` evaluates on the first 256 windows of the first 1100 validation documents, joined by a blank |
//! | `pile` | documents | the first 10 000 documents of the Pile's training split, a set made for such uses; it has no held-out split |
//! | `ptb` | joined by a blank | GPTQ's `get_ptb_new`: train and test |
//!
//! Revisions are commits where the set is maintained by others than its packager, so that a later change on the Hub cannot change a run.
//! The Penn Treebank itself is on the Hub only as a script that loads it from elsewhere; a conversion to Parquet stands in for it.

use super::DataFile;
#[cfg(feature = "hub")]
use crate::checkpoint::hub::{HubOptions, resolve_dataset_file};
use crate::error::{Error, Result, did_you_mean};

/// A data set that goes by name.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedSet {
    /// Its name here.
    pub name: &'static str,
    /// `org/name@revision` on the Hub.
    pub repo: &'static str,
    /// Column that holds the text.
    pub column: &'static str,
    /// Its splits.
    pub parts: &'static [Part],
}

/// A split of a named data set.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// `train`, `validation` or `test`.
    pub split: &'static str,
    /// Path inside the repository.
    pub file: &'static str,
    /// Only so many rows, from the start.
    pub documents: Option<usize>,
    /// What joins the rows to one text; without it each row is a document of its own.
    pub join: Option<&'static str>,
    /// Evaluate at most so many windows.
    pub windows: Option<usize>,
}

impl Part {
    const fn new(split: &'static str, file: &'static str) -> Self {
        Self { split, file, documents: None, join: None, windows: None }
    }

    const fn joined(self, join: &'static str) -> Self {
        Self { join: Some(join), ..self }
    }

    const fn first(self, documents: usize) -> Self {
        Self { documents: Some(documents), ..self }
    }

    const fn at_most(self, windows: usize) -> Self {
        Self { windows: Some(windows), ..self }
    }
}

/// The data sets, sorted by name.
pub const NAMED: &[NamedSet] = &[
    NamedSet {
        name: "c4",
        repo: "allenai/c4@1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        column: "text",
        parts: &[
            Part::new("train", "en/c4-train.00000-of-01024.json.gz").first(10_000),
            Part::new("validation", "en/c4-validation.00000-of-00008.json.gz").first(1100).joined(" ").at_most(256),
        ],
    },
    NamedSet {
        name: "pile",
        repo: "NeelNanda/pile-10k@127bfedcd5047750df5ccf3a12979a47bfa0bafa",
        column: "text",
        parts: &[Part::new("train", "data/train-00000-of-00001-4746b8785c874cc7.parquet")],
    },
    NamedSet {
        name: "ptb",
        repo: "FALcon6/ptb_text_only",
        column: "sentence",
        parts: &[
            Part::new("train", "penn_treebank/train/0000.parquet").joined(" "),
            Part::new("validation", "penn_treebank/validation/0000.parquet").joined(" "),
            Part::new("test", "penn_treebank/test/0000.parquet").joined(" "),
        ],
    },
    NamedSet {
        name: "wikitext2",
        repo: "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
        column: "text",
        parts: &[
            Part::new("train", "wikitext-2-raw-v1/train-00000-of-00001.parquet").joined("\n\n"),
            Part::new("validation", "wikitext-2-raw-v1/validation-00000-of-00001.parquet").joined("\n\n"),
            Part::new("test", "wikitext-2-raw-v1/test-00000-of-00001.parquet").joined("\n\n"),
        ],
    },
];

impl NamedSet {
    /// The data set called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        NAMED.iter().find(|set| set.name == name)
    }

    /// The split to calibrate on: the one asked for, or `train`.
    ///
    /// # Errors
    /// If the data set has no such split.
    pub fn calibration(&self, split: Option<&str>) -> Result<&'static Part> {
        self.part(&[split.unwrap_or("train")])
    }

    /// The split to evaluate on: `validation` if the protocol prefers it, else `test`, else `validation`.
    ///
    /// # Errors
    /// If the data set holds nothing back for evaluation.
    pub fn evaluation(&self, prefer_validation: bool) -> Result<&'static Part> {
        self.part(if prefer_validation { &["validation"] } else { &["test", "validation"] })
    }

    fn part(&self, splits: &[&str]) -> Result<&'static Part> {
        let part = |split: &&str| self.parts.iter().find(|part| part.split == *split);
        splits.iter().find_map(part).ok_or_else(|| {
            let splits = splits.iter().map(|s| format!("`{s}`")).collect::<Vec<_>>().join(" or ");
            let has: Vec<&str> = self.parts.iter().map(|part| part.split).collect();
            Error::config("data::no-split", format!("data set `{}` has no split {splits}", self.name)).hint(format!(
                "it has: {}; other data sets: {}",
                has.join(", "),
                names()
            ))
        })
    }

    /// `part` on this machine, fetched if it is not in the cache; `progress` gets lines for a human.
    ///
    /// # Errors
    /// As [`resolve_dataset_file`].
    #[cfg(feature = "hub")]
    pub fn fetch(&self, part: &Part, opts: &HubOptions, progress: &mut dyn FnMut(&str)) -> Result<DataFile> {
        // What is cached under a fixed revision cannot be out of date, so the Hub need not be asked.
        let cached = resolve_dataset_file(self.repo, part.file, &HubOptions { offline: true, ..opts.clone() }, progress);
        let path = match cached {
            Err(_) if !opts.offline => {
                progress(&format!("fetching `{}` of {} from {}", part.file, self.repo, opts.endpoint));
                resolve_dataset_file(self.repo, part.file, opts, progress)
            }
            cached => cached,
        }?;
        Ok(DataFile { path, text_column: self.column.to_owned(), documents: part.documents, join: part.join, windows: part.windows })
    }
}

/// `source` is neither a file nor a name.
pub(super) fn unknown_source(source: &str) -> Error {
    let what = if source.is_empty() {
        "no data was given".to_owned()
    } else {
        let guess = did_you_mean(source, NAMED.iter().map(|set| set.name));
        format!("`{source}` is neither a file nor the name of a data set{guess}")
    };
    Error::config("data::not-found", what).hint(format!("give a text or token file ({}), or one of: {}", super::KNOWN_FILES, names()))
}

fn names() -> String {
    NAMED.iter().map(|set| set.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_follow_the_published_protocols() {
        let file = |name: &str, part: &dyn Fn(&NamedSet) -> Result<&'static Part>| part(NamedSet::find(name).unwrap()).unwrap().file;
        assert_eq!(file("wikitext2", &|s| s.calibration(None)), "wikitext-2-raw-v1/train-00000-of-00001.parquet");
        assert_eq!(file("wikitext2", &|s| s.evaluation(false)), "wikitext-2-raw-v1/test-00000-of-00001.parquet");
        assert_eq!(file("wikitext2", &|s| s.evaluation(true)), "wikitext-2-raw-v1/validation-00000-of-00001.parquet");
        assert_eq!(file("c4", &|s| s.evaluation(false)), "en/c4-validation.00000-of-00008.json.gz");
        assert_eq!(file("ptb", &|s| s.calibration(Some("validation"))), "penn_treebank/validation/0000.parquet");
    }

    #[test]
    fn a_split_that_is_not_there_is_refused_with_those_that_are() {
        let text = |e: Error| format!("[{}] {e} | {}", e.code(), e.hint_text().unwrap_or_default());
        let pile = NamedSet::find("pile").unwrap();
        assert_eq!(
            text(pile.evaluation(false).unwrap_err()),
            "[data::no-split] data set `pile` has no split `test` or `validation` | it has: train; other data sets: c4, pile, ptb, wikitext2"
        );
        let hint = "it has: train, validation; other data sets: c4, pile, ptb, wikitext2";
        let error = NamedSet::find("c4").unwrap().calibration(Some("tset")).unwrap_err();
        assert_eq!(text(error), format!("[data::no-split] data set `c4` has no split `tset` | {hint}"));
    }

    #[test]
    fn the_table_is_sorted_and_its_entries_are_hub_ids() {
        assert!(NAMED.is_sorted_by_key(|set| set.name));
        for set in NAMED {
            assert!(!set.parts.is_empty() && set.repo.matches('/').count() == 1, "{}", set.name);
        }
    }
}
