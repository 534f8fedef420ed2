//! How far an engine's logits are from ours.
//!
//! Of both, the mean over the vocabulary is taken away at each position: a constant there changes no probability, and some engines give the
//! logarithms of probabilities. That makes the cosine a harder test than it is of logits as they come, whose mean is mostly the same.

use std::path::Path;

use qfw_core::calibration::{Bos, DataFile, evaluation_windows, token_stream};
use qfw_core::checkpoint::{TensorSource, open_tensors};
use qfw_core::evaluate::{EvalControl, Protocol, perplexity};
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::{Error, Result, evaluate};
use qfw_tests::parity::values;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde::{Deserialize, Serialize};

use super::engine::Limits;

/// The ids that everything is run on.
pub(super) struct Tokens {
    /// Windows; each begins with the model's first token, if it has one.
    pub(super) windows: Vec<Vec<u32>>,
    pub(super) vocabulary: usize,
}

/// What we compute of a quantized model.
pub(super) struct Ours {
    /// `[T, vocabulary]`, one a window.
    logits: Vec<Vec<f32>>,
}

/// How far an engine is from that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Distance {
    /// Smallest over positions; of logits less their mean.
    pub(super) cosine: f64,
    /// Mean over positions.
    pub(super) mean: f64,
    /// Largest difference of such a logit, over the largest of ours.
    pub(super) largest: f64,
    /// Perplexity by our logits, over the positions that the engine gave.
    pub(super) ours: f64,
    /// By the engine's.
    pub(super) theirs: f64,
}

impl Distance {
    /// Perplexity over ours, less one.
    pub(super) fn perplexity(&self) -> f64 {
        self.theirs / self.ours - 1.0
    }

    /// Whether it is near enough. What is no number is not.
    pub(super) fn within(&self, limits: &Limits) -> bool {
        let perplexity = limits.perplexity.is_none_or(|p| self.perplexity().abs() <= p);
        let cosine = if limits.of_mean { self.mean } else { self.cosine };
        cosine >= limits.cosine && self.largest <= limits.largest && perplexity && self.theirs.is_finite()
    }
}

impl Tokens {
    /// The first windows of a text as a checkpoint's tokenizer has them, written to `file` with the ids of the whole text.
    ///
    /// # Errors
    /// If there is no tokenizer, or the text is too short.
    pub(super) fn write(checkpoint: &Opened, text: &Path, length: usize, count: usize, file: &Path) -> Result<Self> {
        let tokenizer = checkpoint.tokenizer()?;
        let corpus = DataFile::local(text, None).read(tokenizer.as_ref())?;
        let stream = token_stream(&corpus, tokenizer.as_ref(), Bos::None)?;
        let first = checkpoint.checkpoint.config["bos_token_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let windows = evaluation_windows(&stream, length, Some(count), first)?.ids;
        let bytes = |ids: &[u32]| -> Vec<u8> { ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect() };
        let mut tensors = vec![("text".to_owned(), stream.len(), bytes(&stream))];
        tensors.extend(windows.iter().enumerate().map(|(i, ids)| (format!("ids.{i}"), ids.len(), bytes(ids))));
        let failed = |e: safetensors::SafeTensorError| Error::internal(format!("cannot write ids: {e}"));
        let views = tensors.iter().map(|(name, n, bytes)| Ok((name, TensorView::new(Dtype::I64, vec![*n], bytes).map_err(failed)?)));
        serialize_to_file(views.collect::<Result<Vec<_>>>()?, None, file).map_err(failed)?;
        Ok(Self { windows, vocabulary: checkpoint.model.dims.vocab })
    }
}

impl Ours {
    /// What the checkpoint at `path` computes, and that its perplexity is that of `qfw eval`.
    ///
    /// # Errors
    /// If it cannot be read, or the two differ.
    pub(super) fn of(path: &Path, tokens: &Tokens) -> Result<Self> {
        let opened = Opened::open(path, &Registry::linked()?)?;
        let all = tokens.windows.iter().map(|ids| Ok(evaluate::logits(&opened.model, ids)?.flatten_all()?.to_vec1::<f32>()?));
        let ours = Self { logits: all.collect::<Result<_>>()? };
        let control = EvalControl { progress: &|_, _| (), cancelled: &|| false, stream_bytes: 1 << 28, bf16: None };
        let windows: Vec<(Vec<u32>, usize)> = tokens.windows.iter().map(|ids| (ids.clone(), 0)).collect();
        let eval = perplexity(&opened.model, &windows, Protocol::Gptq, &control)?.perplexity;
        let all: Vec<Vec<usize>> = tokens.windows.iter().map(|ids| (0..ids.len()).collect()).collect();
        let mean = ours.loss(tokens, &ours.logits, &all).exp();
        if (mean / eval - 1.0).abs() > 1e-5 {
            return Err(Error::numeric(
                "interop::eval",
                format!("`{}`: its logits give a perplexity of {mean}, `eval` {eval}", path.display()),
            ));
        }
        Ok(ours)
    }

    /// How far the logits in `file` are.
    ///
    /// # Errors
    /// If it does not hold what was asked for.
    pub(super) fn distance(&self, tokens: &Tokens, file: &Path) -> Result<Distance> {
        let stored = open_tensors(file)?;
        let v = tokens.vocabulary;
        let (mut cosine, mut farthest, mut peak) = (f64::INFINITY, 0.0f64, 0.0f64);
        let (mut sum, mut count) = (0.0, 0.0);
        let (mut mine, mut theirs, mut at) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (all, ids)) in self.logits.iter().zip(&tokens.windows).enumerate() {
            let positions = positions(&*stored, &format!("positions.{i}"), ids.len())?;
            let logits = values(&*stored, &format!("logits.{i}"))?;
            if logits.len() != positions.len() * v {
                let got = format!("window {i}: {} logits at {} positions of a vocabulary of {v}", logits.len(), positions.len());
                return Err(Error::input("interop::logits", got));
            }
            let own: Vec<f32> = positions.iter().flat_map(|p| all[p * v..(p + 1) * v].iter().copied()).collect();
            for (a, b) in logits.chunks_exact(v).zip(own.chunks_exact(v)) {
                let (a, b) = (centred(a), centred(b));
                let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
                let here = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
                (cosine, sum, count) = (least(cosine, here), sum + here, count + 1.0);
                farthest = a.iter().zip(&b).fold(farthest, |m, (a, b)| most(m, (a - b).abs()));
                peak = b.iter().fold(peak, |m, b| m.max(b.abs()));
            }
            mine.push(own);
            theirs.push(logits);
            at.push(positions);
        }
        let (ours, theirs) = (self.loss(tokens, &mine, &at).exp(), self.loss(tokens, &theirs, &at).exp());
        Ok(Distance { cosine, mean: sum / count, largest: farthest / peak, ours, theirs })
    }

    /// Mean over windows of the mean negative log-likelihood of the tokens that follow the positions, in nats.
    fn loss(&self, tokens: &Tokens, logits: &[Vec<f32>], positions: &[Vec<usize>]) -> f64 {
        let v = tokens.vocabulary;
        let each: Vec<f64> = (logits.iter().zip(positions).zip(&tokens.windows))
            .filter_map(|((logits, positions), ids)| {
                let scored: Vec<f64> = (logits.chunks_exact(v).zip(positions))
                    .filter_map(|(row, p)| {
                        let target = *ids.get(p + 1)? as usize;
                        let top = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
                        let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
                        Some(sum.ln() - f64::from(row.get(target)? - top))
                    })
                    .collect();
                (!scored.is_empty()).then(|| scored.iter().sum::<f64>() / scored.len() as f64)
            })
            .collect();
        each.iter().sum::<f64>() / each.len() as f64
    }
}

/// The smaller; what is no number stays.
fn least(a: f64, b: f64) -> f64 {
    if b.is_nan() || b < a { b } else { a }
}

/// The larger; what is no number stays.
fn most(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn centred(row: &[f32]) -> Vec<f64> {
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
    row.iter().map(|x| f64::from(*x) - mean).collect()
}

/// The positions of a window of `length` that an engine gave: all, where it does not say which.
fn positions(file: &dyn TensorSource, name: &str, length: usize) -> Result<Vec<usize>> {
    if file.info(name).is_none() {
        return Ok((0..length).collect());
    }
    let bytes = file.read_bytes(name)?;
    let all: Vec<usize> = bytes.as_chunks::<8>().0.iter().filter_map(|w| usize::try_from(i64::from_le_bytes(*w)).ok()).collect();
    if all.is_empty() || all.iter().any(|p| *p >= length) {
        return Err(Error::input("interop::positions", format!("`{name}` says {all:?} of a window of {length}")));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(theirs: &[f32]) -> Distance {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("l.safetensors");
        let bytes: Vec<u8> = theirs.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2, 3], &bytes).unwrap();
        serialize_to_file([("logits.0", view)], None, &file).unwrap();
        let tokens = Tokens { windows: vec![vec![0, 2]], vocabulary: 3 };
        Ours { logits: vec![vec![1.0, 2.0, 6.0, -1.0, 0.0, 1.0]] }.distance(&tokens, &file).unwrap()
    }

    /// A constant added to a row, as the logarithms of probabilities have it, changes nothing.
    #[test]
    fn logarithms_of_probabilities_are_as_good_as_logits() {
        let same = measured(&[-7.0, -6.0, -2.0, 4.0, 5.0, 6.0]);
        assert!((same.cosine - 1.0).abs() < 1e-12 && same.largest == 0.0 && same.perplexity() == 0.0, "{same:?}");
        assert!(same.within(&Limits::F32));
        // The one target is token 2 after position 0: ln(e^-5 + e^-4 + 1) nats by hand.
        assert!((same.ours - ((-5f64).exp() + (-4f64).exp() + 1.0)).abs() < 1e-9, "{same:?}");
    }

    /// Less their means, the rows are (-2, -1, 3) and (-2, -2, 4), (-1, 0, 1) and (-1, 0, 1).
    #[test]
    fn the_smallest_cosine_and_the_largest_difference_count() {
        let far = measured(&[1.0, 1.0, 7.0, -1.0, 0.0, 1.0]);
        let expected = 18.0 / (14.0f64 * 24.0).sqrt();
        assert!((far.mean - (expected + 1.0) / 2.0).abs() < 1e-12, "{far:?}");
        assert!((far.cosine - expected).abs() < 1e-12 && (far.largest - 1.0 / 3.0).abs() < 1e-12, "{far:?}");
        assert!(!far.within(&Limits::ROUNDED));
        let broken = measured(&[f32::NAN, 1.0, 7.0, -1.0, 0.0, 1.0]);
        assert!(!broken.within(&Limits::ROUNDED) && broken.cosine.is_nan() && broken.largest.is_nan(), "{broken:?}");
    }
}
