//! What leaves the function of the model as it is: norms, rotations, scalings.

use qfw_core::Result;
use toml::{Table, Value};

use super::super::draft::Draft;
use super::super::flags::Flags;

/// In the order in which Brevitas does them.
pub(super) fn passes(flags: &Flags, draft: &mut Draft) -> Result<()> {
    if flags.on("ln-affine-merge", false) {
        draft.pass("fold-norms", Table::new());
    }
    if flags.on("convert-layernorm-to-rmsnorm", false) {
        draft.pass("center-residual", Table::new());
        draft.note("`--convert-layernorm-to-rmsnorm`: the mean leaves the residual stream, and LayerNorm, which finds none, stays; it is for models with LayerNorm");
    }
    rotation(flags, draft)?;
    if flags.on("weight-equalization", false) {
        draft.pass("weight-equalization", Table::new());
    }
    equalization(flags, draft);
    if flags.on("awq-scale", false) {
        draft.pass("awq", Table::new());
    }
    Ok(())
}

/// What a rotation needs of other flags is what Brevitas asks for too.
fn rotation(flags: &Flags, draft: &mut Draft) -> Result<()> {
    let Some(mode) = flags.text("rotation") else { return Ok(()) };
    let (folded, converted) = (flags.on("ln-affine-merge", false), flags.on("convert-layernorm-to-rmsnorm", false));
    if mode != "layerwise" && !flags.on("replace-rmsnorm", false) {
        return Err(flags.wrong("rotation", "Brevitas needs `--replace-rmsnorm` with it"));
    }
    if mode == "fx" && !(folded && converted) {
        return Err(flags.wrong("rotation", "Brevitas needs `--ln-affine-merge` and `--convert-layernorm-to-rmsnorm` with it"));
    }
    if mode == "fused_no_fx" && converted {
        return Err(flags.wrong("convert-layernorm-to-rmsnorm", "`--rotation fused_no_fx` does that itself"));
    }
    let mut options = Table::new();
    let mut set = |name: &str, value: Value| options.insert(name.to_owned(), value);
    let learns = flags.on("optimize-rotations", false);
    if mode == "layerwise" {
        if learns {
            return Err(flags
                .wrong("optimize-rotations", "only rotations that are fused into weights are trained")
                .hint("set `--rotation` to `fx` or `fused_no_fx`"));
        }
        set("mode", "layerwise".into());
        for name in ["rotation-mode", "rotation-orphan-sink", "rotation-sdpa-regions", "rotation-layers-to-expand"] {
            if flags.given(name) {
                draft.note(format!("{} has no effect with `--rotation layerwise`, in Brevitas as here", flags.shown(name)));
            }
        }
        draft.set("output.format", vec!["qfw"]);
    } else {
        let attention = flags.on("rotation-sdpa-regions", false);
        set("rotations", if attention { vec!["r1", "r2", "r3"] } else { vec!["r1"] }.into());
        set("matrix", if flags.text("rotation-mode") == Some("ort") { "orthogonal" } else { "hadamard" }.into());
        if learns {
            // Where training starts from a Hadamard matrix, Brevitas takes one behind random signs.
            if flags.text("rotation-mode") != Some("ort") {
                set("matrix", "randomized-hadamard".into());
            }
            set("optimize", trained(flags)?.into());
        }
        let orphans = flags.on("rotation-orphan-sink", false);
        set("orphan-sink", orphans.into());
        let wider = flags.list("rotation-layers-to-expand").unwrap_or_default();
        if !wider.is_empty() {
            set("expand", wider.to_vec().into());
            set("expansion-step", flags.whole("expansion-step").unwrap_or(1).into());
        }
        if attention || orphans || !wider.is_empty() {
            draft.set("output.format", vec!["qfw"]);
        }
        draft.note(
            "`--rotation`: where the model has LayerNorm, rotations that keep the mean of the channels are taken, and LayerNorm stays",
        );
    }
    draft.pass("spinquant", options);
    Ok(())
}

/// The trainer's arguments; what is left out is as in its own default.
fn trained(flags: &Flags) -> Result<Table> {
    if flags.number("weight-decay").is_some_and(|decay| decay != 0.0) {
        return Err(flags.wrong("weight-decay", "rotations have no length that could decay").hint("leave it out"));
    }
    let mut how = Table::new();
    let mut set = |name: &str, value: Option<Value>| value.map(|value| how.insert(name.to_owned(), value));
    set("optimizer", Some("cayley-sgd".into()));
    set("lr", flags.number("learning-rate").map(Value::from));
    set("batch-size", flags.whole("per-device-train-batch-size").map(Value::from));
    set("steps", flags.whole("max-steps").map(Value::from));
    set("samples", flags.whole("nsamples-rot-calibration").map(Value::from));
    Ok(how)
}

fn equalization(flags: &Flags, draft: &mut Draft) {
    if let Some(mode) = flags.text("act-equalization") {
        let layerwise = mode == "layerwise";
        let options: [(&str, Value); 4] = [
            ("alpha", flags.number("act-equalization-alpha").unwrap_or(0.5).into()),
            ("variant", "brevitas".into()),
            ("everywhere", layerwise.into()),
            ("stand-alone", layerwise.into()),
        ];
        draft.pass("smoothquant", options.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
        draft.note(if layerwise {
            "`--act-equalization layerwise`: factors are merged into what comes before, and a multiplication stays in the model only behind \
             what cannot take them, where Brevitas leaves one before every layer; few formats hold one: `--set output.format=[\"qfw\"]` does"
        } else {
            "`--act-equalization fx`: factors are merged into RMSNorm too, which Brevitas leaves out"
        });
    } else if flags.given("act-equalization-alpha") {
        draft.note(format!("{} has no effect without `act-equalization`", flags.shown("act-equalization-alpha")));
    }
}
