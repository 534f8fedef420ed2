//! Which activations a run has to keep, and in what order it works, from what its passes ask for.

use super::raw::{RawPropagate, RawSequence};
use super::resolved::{PlannedPass, Propagate, Sequence};
use crate::algorithm::Needs;
use crate::error::{Error, Result};
use crate::statistic::{StatKind, Stream};

/// What travels from block to block: as asked, or, where nothing was asked, the quantized activations, and the original ones beside them
/// where a pass compares.
///
/// # Errors
/// If what was asked leaves out what a pass needs.
pub(super) fn propagate(
    asked: Option<RawPropagate>,
    passes: &[PlannedPass],
    needs: &[Needs],
    notes: &mut Vec<String>,
) -> Result<Propagate> {
    let trains = |on: Stream| needs.iter().position(|n| n.training == Some(on)).map(|i| passes[i].algo.as_str());
    let first = |wanted: fn(StatKind, Stream) -> bool| {
        let pass = needs.iter().position(|n| n.inputs.iter().any(|(kind, stream)| wanted(*kind, *stream)));
        pass.map(|i| passes[i].algo.as_str())
    };
    let reference = first(|kind, stream| kind == StatKind::CrossGram || stream == Stream::Reference).or(trains(Stream::Reference));
    let quantized = first(|_, stream| stream != Stream::Reference).or(trains(Stream::Quantized));
    let lacks = |algo: &str, what: &str, kept: &str| {
        let message = format!("`{algo}` needs the activations of the {what} model, but `harness.propagate` is `{kept}`");
        Err(Error::plan("plan::propagate", message).hint("set `harness.propagate = \"both\"`, or leave the key out"))
    };
    if let (None, None, Some(algo)) = (asked, reference, trains(Stream::Quantized)) {
        notes.push(format!("`harness.propagate` is `both`: `{algo}` aims at what the original model puts out"));
        return Ok(Propagate::Both);
    }
    match (asked, reference, quantized) {
        (None, Some(algo), _) => {
            notes.push(format!("`harness.propagate` is `both`: `{algo}` needs the activations of the original model too"));
            Ok(Propagate::Both)
        }
        (Some(RawPropagate::Quantized), Some(algo), _) => lacks(algo, "original", "quantized"),
        (Some(RawPropagate::Reference), _, Some(algo)) => lacks(algo, "quantized", "reference"),
        (None | Some(RawPropagate::Quantized), None, _) => Ok(Propagate::Quantized),
        (Some(RawPropagate::Reference), _, None) => Ok(Propagate::Reference),
        (Some(RawPropagate::Both), _, _) => Ok(Propagate::Both),
    }
}

/// What is rounded between two collecting sweeps: as asked, or, where nothing was asked, a block, and one layer after the other where a
/// pass compares two streams.
///
/// Such a pass corrects for how far its input has drifted. If the layers of a block are done at once, each on a drift that those before
/// it are about to correct too, the same drift is corrected several times over, and what comes out is worse than it was.
pub(super) fn sequence(asked: Option<RawSequence>, passes: &[PlannedPass], needs: &[Needs], notes: &mut Vec<String>) -> Sequence {
    let compares = needs.iter().position(|n| n.inputs.iter().any(|(kind, _)| *kind == StatKind::CrossGram));
    match (asked, compares) {
        (None, Some(i)) => {
            notes.push(format!("`harness.sequence` is `layer`: `{}` corrects what the layers before left", passes[i].algo));
            Sequence::Layer
        }
        (Some(RawSequence::Block), Some(i)) => {
            let algo = &passes[i].algo;
            notes.push(format!(
                "`harness.sequence` is `block`: all layers of a block let `{algo}` correct the same drift; `layer` does better"
            ));
            Sequence::Block
        }
        (Some(RawSequence::Layer), _) => Sequence::Layer,
        (None | Some(RawSequence::Block), None) => Sequence::Block,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Phase;

    fn pass() -> PlannedPass {
        PlannedPass {
            algo: "pairs".to_owned(),
            phase: Phase::Round,
            version: String::new(),
            plugin: None,
            options: serde_json::Value::Null,
            group_index: false,
            sites: Vec::new(),
            regions: Vec::new(),
        }
    }

    #[test]
    fn drift_is_corrected_once() {
        let of = |asked, kind| {
            let mut notes = Vec::new();
            let needs = Needs { inputs: vec![(kind, Stream::Rounded)], ..Needs::default() };
            (sequence(asked, &[pass()], &[needs], &mut notes), notes)
        };
        let (layer, notes) = of(None, StatKind::CrossGram);
        assert_eq!(layer, Sequence::Layer);
        assert_eq!(notes, ["`harness.sequence` is `layer`: `pairs` corrects what the layers before left"]);
        let (block, notes) = of(Some(RawSequence::Block), StatKind::CrossGram);
        assert_eq!(block, Sequence::Block);
        assert!(notes[0].ends_with("let `pairs` correct the same drift; `layer` does better"), "{notes:?}");
        assert_eq!(of(Some(RawSequence::Layer), StatKind::CrossGram), (Sequence::Layer, Vec::new()));
        assert_eq!(of(None, StatKind::Gram), (Sequence::Block, Vec::new()));
    }

    fn of(asked: Option<RawPropagate>, inputs: Vec<(StatKind, Stream)>) -> (std::result::Result<Propagate, String>, Vec<String>) {
        let mut notes = Vec::new();
        let needs = Needs { inputs, ..Needs::default() };
        (propagate(asked, &[pass()], &[needs], &mut notes).map_err(|e| e.to_string()), notes)
    }

    #[test]
    fn a_pass_that_compares_two_streams_gets_both() {
        let pair = || vec![(StatKind::Gram, Stream::Rounded), (StatKind::CrossGram, Stream::Rounded)];
        let (both, notes) = of(None, pair());
        assert_eq!(both, Ok(Propagate::Both));
        assert_eq!(notes, ["`harness.propagate` is `both`: `pairs` needs the activations of the original model too"]);
        assert_eq!(of(Some(RawPropagate::Both), pair()), (Ok(Propagate::Both), Vec::new()));
        let lacks =
            |what: &str, kept: &str| Err(format!("`pairs` needs the activations of the {what} model, but `harness.propagate` is `{kept}`"));
        assert_eq!(of(Some(RawPropagate::Quantized), pair()).0, lacks("original", "quantized"));
        assert_eq!(of(Some(RawPropagate::Reference), pair()).0, lacks("quantized", "reference"));
        let one = || vec![(StatKind::Gram, Stream::Reference)];
        assert_eq!(of(Some(RawPropagate::Reference), one()).0, Ok(Propagate::Reference));
        assert_eq!(of(None, vec![(StatKind::Gram, Stream::Quantized)]), (Ok(Propagate::Quantized), Vec::new()));
    }
}
