//! Which activations a run has to keep, from what its passes ask for.

use super::raw::RawPropagate;
use super::resolved::{PlannedPass, Propagate};
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
    let first = |wanted: fn(StatKind, Stream) -> bool| {
        let pass = needs.iter().position(|n| n.inputs.iter().any(|(kind, stream)| wanted(*kind, *stream)));
        pass.map(|i| passes[i].algo.as_str())
    };
    let reference = first(|kind, stream| kind == StatKind::CrossGram || stream == Stream::Reference);
    let quantized = first(|_, stream| stream != Stream::Reference);
    let lacks = |algo: &str, what: &str, kept: &str| {
        let message = format!("`{algo}` needs the activations of the {what} model, but `harness.propagate` is `{kept}`");
        Err(Error::plan("plan::propagate", message).hint("set `harness.propagate = \"both\"`, or leave the key out"))
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Phase;

    fn of(asked: Option<RawPropagate>, inputs: Vec<(StatKind, Stream)>) -> (std::result::Result<Propagate, String>, Vec<String>) {
        let pass = PlannedPass {
            algo: "pairs".to_owned(),
            phase: Phase::Round,
            version: String::new(),
            options: serde_json::Value::Null,
            group_index: false,
            sites: Vec::new(),
        };
        let mut notes = Vec::new();
        let needs = Needs { inputs, ..Needs::default() };
        (propagate(asked, &[pass], &[needs], &mut notes).map_err(|e| e.to_string()), notes)
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
