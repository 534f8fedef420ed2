//! Quantization arguments: how `config.json` states one scheme.
//!
//! Readers refuse unknown keys, and the older ones `scale_dtype` too, so that it is there only where it means something.

use qfw_core::scheme::{Extent, Grid, QuantSpec, ScaleForm, Timing, Zero};
use serde_json::{Value, json};

/// The arguments of a weight.
pub(crate) fn weight(spec: &QuantSpec) -> Value {
    let strategy = match (spec.granularity.rows, spec.granularity.cols) {
        (Extent::All, _) => Strategy::named("tensor"),
        (_, Extent::All) => Strategy::named("channel"),
        (Extent::Of(1), Extent::Of(g)) if spec.scale == ScaleForm::TwoLevel => {
            Strategy { name: "tensor_group", group: Some(g), block: None }
        }
        (Extent::Of(1), Extent::Of(g)) => Strategy { name: "group", group: Some(g), block: None },
        (Extent::Of(r), Extent::Of(c)) => Strategy { name: "block", group: None, block: Some([r, c]) },
    };
    let mut args = arguments(spec, &strategy);
    match spec.scale {
        ScaleForm::TwoLevel => args["scale_dtype"] = json!("torch.float8_e4m3fn"),
        ScaleForm::PowerOfTwo { .. } => args["scale_dtype"] = json!("torch.uint8"),
        ScaleForm::Float(_) | ScaleForm::One => {}
    }
    args
}

/// The arguments of an input of a linear.
pub(crate) fn input(spec: &QuantSpec) -> Value {
    let strategy = match (spec.granularity.rows, spec.granularity.cols) {
        (Extent::All, _) => Strategy::named("tensor"),
        (_, Extent::All) => Strategy::named("token"),
        (_, Extent::Of(g)) => Strategy { name: "group", group: Some(g), block: None },
    };
    arguments(spec, &strategy)
}

/// The arguments of cached keys and values.
pub(crate) fn cache(spec: &QuantSpec) -> Value {
    let strategy = if spec.granularity.cols == Extent::All { "tensor" } else { "attn_head" };
    arguments(spec, &Strategy::named(strategy))
}

struct Strategy {
    name: &'static str,
    group: Option<u32>,
    block: Option<[u32; 2]>,
}

impl Strategy {
    fn named(name: &'static str) -> Self {
        Self { name, group: None, block: None }
    }
}

fn arguments(spec: &QuantSpec, strategy: &Strategy) -> Value {
    let dynamic = spec.timing == Timing::Dynamic;
    json!({
        "num_bits": spec.bits,
        "type": if matches!(spec.grid, Grid::Float(_)) { "float" } else { "int" },
        "symmetric": spec.grid.zero() != Zero::Integer,
        "strategy": strategy.name,
        "group_size": strategy.group,
        "block_structure": strategy.block,
        "dynamic": dynamic,
        "actorder": null,
        "observer": if dynamic { None } else { Some("minmax") },
        "observer_kwargs": {},
    })
}
