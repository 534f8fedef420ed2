//! The text: how it is normalised and parted.
//!
//! A paragraph of the source (lines up to a blank one) becomes one line, runs of spaces become one space. The last twentieth of the
//! characters, from the next paragraph on, is held out: no tokenizer and no model sees it.

use qfw_core::{Error, Result};

/// Share of the text that is trained on.
const TRAINING_SHARE: f64 = 0.95;
/// Bytes of the evaluation excerpt, about.
const EVALUATION_BYTES: usize = 80_000;
/// The calibration excerpt: so many pieces, evenly spaced over the training text, of so many bytes each, about.
const CALIBRATION_PIECES: usize = 8;
const CALIBRATION_BYTES: usize = 16_000;
/// A paragraph that starts like this and is this short is a heading, where a document starts.
const HEADING: &str = "chapter";
const HEADING_BYTES: usize = 20;

/// The parts of the text, normalised; one paragraph a line.
pub(super) struct Corpus {
    /// What the tokenizer and the models learn from.
    pub(super) training: String,
    /// Pieces of `training`.
    pub(super) calibration: String,
    /// The first part of the held-out text.
    pub(super) evaluation: String,
    /// Bytes held out in all.
    pub(super) held_out: usize,
}

impl Corpus {
    /// Normalises and parts `text`.
    ///
    /// # Errors
    /// If it is too short to part.
    pub(super) fn split(text: &str) -> Result<Self> {
        let whole = normalise(text);
        if whole.len() < 1_000_000 {
            let message = format!("the text has {} bytes after normalisation, fewer than 1000000", whole.len());
            return Err(Error::input("train-tiny::short-text", message).hint("give a longer text"));
        }
        let (training, held_out) = whole.split_at(paragraph_at(&whole, (whole.len() as f64 * TRAINING_SHARE) as usize));
        let mut calibration = String::new();
        for piece in 0..CALIBRATION_PIECES {
            calibration.push_str(excerpt(training, training.len() / CALIBRATION_PIECES * piece, CALIBRATION_BYTES));
        }
        Ok(Self {
            calibration,
            evaluation: excerpt(held_out, 0, EVALUATION_BYTES).to_owned(),
            held_out: held_out.len(),
            training: training.to_owned(),
        })
    }
}

/// The documents of a text: its chapters.
pub(super) fn documents(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let is_heading = line.len() <= HEADING_BYTES && line.get(..HEADING.len()).is_some_and(|s| s.eq_ignore_ascii_case(HEADING));
        if is_heading && at > 0 {
            starts.push(at);
        }
        at += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for line in text.lines() {
        let mut words = line.split_whitespace().peekable();
        if words.peek().is_none() && is_inside {
            out.push('\n');
            is_inside = false;
        }
        for word in words {
            if is_inside {
                out.push(' ');
            }
            out.push_str(word);
            is_inside = true;
        }
    }
    if is_inside {
        out.push('\n');
    }
    out
}

/// About `length` bytes from `start` on, in whole paragraphs.
fn excerpt(text: &str, start: usize, length: usize) -> &str {
    &text[paragraph_at(text, start)..paragraph_at(text, start + length)]
}

/// Where the first paragraph at or after byte `at` starts; the end of the text if none does.
fn paragraph_at(text: &str, at: usize) -> usize {
    if at == 0 {
        return 0;
    }
    text.as_bytes().iter().skip(at - 1).position(|b| *b == b'\n').map_or(text.len(), |found| at + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_lines() {
        assert_eq!(normalise("\n CHAPTER  1\r\n\n\nIt was\n  so.\n \nEnd"), "CHAPTER 1\nIt was so.\nEnd\n");
    }

    #[test]
    fn documents_start_at_headings_and_lose_nothing() {
        let text = "EMMA\nChapter 1\nShe was.\nChapters are long, and this is no heading.\nCHAPTER II\nThen.\n";
        let parts = documents(text);
        assert_eq!(parts.concat(), text);
        assert_eq!(parts.iter().map(|p| p.lines().next().unwrap()).collect::<Vec<_>>(), ["EMMA", "Chapter 1", "CHAPTER II"]);
    }

    #[test]
    fn excerpts_are_whole_paragraphs_and_the_held_out_part_is_apart() {
        let text: String = (0..60_000).map(|i| format!("Paragraph number {i} of this text.\n\n")).collect();
        let corpus = Corpus::split(&text).unwrap();
        for part in [&corpus.training, &corpus.calibration, &corpus.evaluation] {
            assert!(part.starts_with("Paragraph") && part.ends_with(".\n"));
        }
        assert!(corpus.calibration.lines().all(|line| corpus.training.contains(line)));
        assert!(corpus.evaluation.lines().all(|line| !corpus.training.contains(line)));
        assert!((0.949..0.951).contains(&(corpus.training.len() as f64 / (corpus.training.len() + corpus.held_out) as f64)));
    }

    #[test]
    fn a_short_text_is_refused() {
        let error = Corpus::split("Too short.").err().unwrap();
        assert_eq!(error.to_string(), "the text has 11 bytes after normalisation, fewer than 1000000");
    }
}
