//! Text to tokens to windows.
//!
//! [`Source`] tells a file from the name of a data set ([`NamedSet`]), [`DataFile`] is read into documents or stored token ids,
//! [`sample_windows`] draws the calibration windows from them, and [`token_stream`] with [`evaluation_windows`] cuts the whole data into
//! consecutive windows. [`Windows::hash`] names the exact ids, so that two runs can be shown to have seen the same data.

mod ids;
mod named;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod source;
mod template;
mod tokenizer;
mod windows;

pub use named::{NAMED, NamedSet, Part};
pub use source::{Corpus, DataFile, Source, read_corpus};
pub use tokenizer::Tokenizer;
pub use windows::{Bos, SampleSpec, Windows, evaluation_windows, sample_windows, token_stream};

use named::unknown_source;
use source::KNOWN_FILES;
