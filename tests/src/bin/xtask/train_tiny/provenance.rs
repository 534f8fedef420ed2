//! `README.md` of the assets: where the text comes from, how the models were made, and how good they are.

use std::fmt::Write as _;

use super::corpus::Corpus;
use super::descent::WEIGHT_DECAY;
use super::{Args, CONTEXT, Trained, VOCABULARY};

/// The text of `README.md`; `digest` is the source text's BLAKE3.
pub(super) fn readme(args: &Args, digest: &str, corpus: &Corpus, trained: &[Trained]) -> String {
    let mut out = String::from(SOURCE);
    let _ = write!(
        out,
        "\nBLAKE3 of `austen.txt`: `{digest}`.\n\n\
         ## Parting\n\n\
         A paragraph becomes one line, a run of spaces one space: {} bytes. The last {} bytes are held out; tokenizers and models see \
         only the rest. `text/evaluation.txt` ({} bytes) is the start of the held-out part, `text/calibration.txt` ({} bytes) is eight \
         evenly spaced pieces of the training part.\n\n\
         ## Training\n\n\
         ```sh\nRAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 cargo xtask train-tiny --text austen.txt --steps {} --batch {} --rate {} --seed \
         {}\n```\n\n\
         AdamW with weight decay {WEIGHT_DECAY}, warm-up, cosine, gradients clipped to norm 1; random windows of {CONTEXT} tokens; own \
         byte-level BPE tokenizers of {VOCABULARY} entries; weights stored as float16. Perplexities are of the stored weights over \
         consecutive windows of {CONTEXT} tokens. At 2300 steps of 4 windows it takes about 16 minutes of CPU time in all.\n\n\
         | model | parameters | tokens in the text | tokens seen | last training loss | calibration perplexity | evaluation loss | \
         evaluation perplexity | tokens evaluated |\n|---|---|---|---|---|---|---|---|---|\n",
        corpus.training.len() + corpus.held_out,
        corpus.held_out,
        corpus.evaluation.len(),
        corpus.calibration.len(),
        args.steps,
        args.batch,
        args.rate,
        args.seed,
    );
    for Trained { family, outcome: o } in trained {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {:.4} | {:.3} | {:.4} | {:.3} | {} |",
            family.folder(),
            o.parameters,
            o.stream,
            o.seen,
            o.training_loss,
            o.calibration_loss.exp(),
            o.evaluation_loss,
            o.evaluation_loss.exp(),
            o.evaluated,
        );
    }
    out
}

const SOURCE: &str = "# Assets

Two tiny language models that this project trained itself, and text to calibrate and evaluate them with. `qfw quickstart` carries them;
the tests quantize them. This file is written by `cargo xtask train-tiny`.

## Text

The six novels of Jane Austen (1775–1817), first printed 1811–1817: in the public domain. They come from Debian's package
`r-cran-janeaustenr` 1.0.0-1 (bookworm; its R code is MIT, Julia Silge), which has them from Project Gutenberg. To make `austen.txt`:

```sh
apt-get install --no-install-recommends r-cran-janeaustenr
Rscript -e 'library(janeaustenr)
books <- c(sensesensibility, prideprejudice, mansfieldpark, emma, northangerabbey, persuasion)
writeLines(books, \"austen.txt\", useBytes = TRUE)'
```
";
