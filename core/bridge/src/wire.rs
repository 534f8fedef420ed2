//! What crosses the border as JSON. Both sides use these; unknown keys are skipped, so that either may be the newer one.

use qfw_core::algorithm::{BranchNeed, Needs};
use qfw_core::scheme::{FloatKind, QuantSpec};
use qfw_core::statistic::{StatKind, Stream};
use qfw_core::topology::{Linear, Place, Port, Role, SiteId};
use serde::{Deserialize, Serialize};

/// A layer, without its stored name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LinearWire {
    /// The decoder block.
    pub block: Option<u32>,
    /// Such as `attn.q`.
    pub role: String,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// The port it reads, such as `attn.in`.
    pub input: Place,
    /// The port it writes.
    pub output: Place,
    /// The expert it belongs to.
    #[serde(default)]
    pub expert: Option<u16>,
    /// Whether it has a bias.
    pub bias: bool,
}

impl LinearWire {
    /// What is told of a layer.
    pub fn of(linear: &Linear) -> Self {
        let place = |port: Port| Place { block: None, port: Port { expert: None, ..port } };
        Self {
            block: linear.site.block,
            role: linear.site.role.name().to_owned(),
            shape: linear.shape,
            input: place(linear.input),
            output: place(linear.output),
            expert: linear.input.expert,
            bias: linear.bias,
        }
    }

    /// The layer; its stored name is empty. `None` for a role that this version does not know.
    pub fn linear(&self) -> Option<Linear> {
        let port = |place: Place| Port { expert: self.expert, ..place.port };
        Some(Linear {
            site: SiteId { block: self.block, role: Role::parse(&self.role)? },
            shape: self.shape,
            input: port(self.input),
            output: port(self.output),
            bias: self.bias,
            module: String::new(),
            transposed: false,
        })
    }
}

/// A site of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanSite {
    /// The layer.
    pub linear: LinearWire,
    /// What its weight becomes.
    pub weights: QuantSpec,
    /// How its input is rounded, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<QuantSpec>,
}

/// What an algorithm may look at when it states its needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanWire {
    /// Decoder blocks of the model.
    pub blocks: u32,
    /// The stream to take statistics from by default.
    pub stream: Stream,
    /// The sites it will work on.
    pub sites: Vec<PlanSite>,
}

/// The branches that a split asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BranchWire {
    /// Rank.
    pub rank: usize,
    /// What `A` and `B` are stored in; nothing: as the weight.
    #[serde(default)]
    pub stored: Option<FloatKind>,
    /// Sites that read the same input share one `A`.
    #[serde(default)]
    pub shared: bool,
}

/// What an algorithm needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NeedsWire {
    /// Statistics and their streams: `[["gram", "quantized"]]`.
    pub inputs: Vec<(StatKind, Stream)>,
    /// Its groups do not run in storage order.
    pub group_index: bool,
    /// Its sites have to have a bias.
    pub bias: bool,
    /// The share of the step that its sites are to have; 0 leaves it.
    pub rescale: f64,
    /// The branches of a split.
    pub branch: Option<BranchWire>,
    /// Solver scratch in bytes for the widest site.
    pub scratch_bytes: u64,
}

impl NeedsWire {
    /// These needs.
    ///
    /// # Errors
    /// Why they do not cross: what runs the model has to be in the program.
    pub fn of(needs: &Needs) -> Result<Self, &'static str> {
        // Every field by its name: one that is new has to be thought of here.
        let Needs { inputs, group_index, bias, rescale, replay, training, network, branch, scratch_bytes } = needs;
        let refused = [
            (*replay, "it runs parts of the model again"),
            (training.is_some(), "it runs blocks, with gradients"),
            (*network > 0, "it runs the whole model, with gradients"),
        ];
        if let Some((_, why)) = refused.into_iter().find(|(refused, _)| *refused) {
            return Err(why);
        }
        Ok(Self {
            inputs: inputs.clone(),
            group_index: *group_index,
            bias: *bias,
            rescale: *rescale,
            branch: branch.map(|b| BranchWire { rank: b.rank, stored: b.stored, shared: b.shared }),
            scratch_bytes: *scratch_bytes,
        })
    }

    /// The needs as core has them.
    pub fn needs(self) -> Needs {
        Needs {
            inputs: self.inputs,
            group_index: self.group_index,
            bias: self.bias,
            rescale: self.rescale,
            branch: self.branch.map(|b| BranchNeed { rank: b.rank, stored: b.stored, shared: b.shared }),
            scratch_bytes: self.scratch_bytes,
            ..Needs::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use qfw_core::topology::PortName;

    use super::*;

    #[test]
    fn a_layer_comes_back_as_it_was_but_for_its_stored_name() {
        let linear = Linear {
            site: SiteId::in_block(3, Role::MlpDown),
            shape: (8, 24),
            input: Port { name: PortName::DownIn, expert: Some(2) },
            output: Port { name: PortName::DownOut, expert: Some(2) },
            bias: true,
            module: "model.layers.3.mlp.down_proj".to_owned(),
            transposed: true,
        };
        let text = serde_json::to_string(&LinearWire::of(&linear)).unwrap();
        assert!(!text.contains("layers"), "stored names stay behind: {text}");
        let back = serde_json::from_str::<LinearWire>(&text).unwrap().linear().unwrap();
        assert_eq!(back, Linear { module: String::new(), transposed: false, ..linear });
    }

    #[test]
    fn needs_that_run_the_model_do_not_cross() {
        let refused = |needs: Needs| NeedsWire::of(&needs).unwrap_err();
        assert_eq!(refused(Needs { replay: true, ..Needs::default() }), "it runs parts of the model again");
        assert_eq!(refused(Needs { training: Some(Stream::Reference), ..Needs::default() }), "it runs blocks, with gradients");
        assert_eq!(refused(Needs { network: 1, ..Needs::default() }), "it runs the whole model, with gradients");
        let needs = Needs { inputs: vec![(StatKind::CrossGram, Stream::Rounded)], rescale: 0.5, ..Needs::default() };
        let text = serde_json::to_string(&NeedsWire::of(&needs).unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<NeedsWire>(&text).unwrap().needs(), needs);
    }
}
