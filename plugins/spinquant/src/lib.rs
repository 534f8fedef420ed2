//! Rotations (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456; SpinQuant, Liu et al. 2024, arXiv:2405.16406): rotated channels have no
//! outliers, and a model that is rotated throughout computes what it did. For row vectors `x`,
//!
//! ```text
//! R1   the residual stream, one rotation for the model     x·R1; readers W·R1, writers R1ᵀ·W, embeddings E·R1, biases b·R1
//! R2   the values of a head, one for each block            rows of v by R2ᵀ, columns of o by R2
//! R3   queries and keys of a head, while the model runs    (q·H)(k·H)ᵀ = q·kᵀ
//! R4   what the down projection reads, while it runs       x·H; W·H
//! ```
//!
//! R1 and R2 are fused, and any engine loads the result. R3 and R4 cannot be: a rotation does not commute with rotary positions, nor with
//! the non-linearity. In a model with LayerNorm `R1·1 = 1`, so that the mean over the channels stays where LayerNorm finds it.
//!
//! With `optimize`, R1 and R2 are learned from where they are drawn, on the loss of the quantized model or on what rounding does to weights.
//!
//! `expand` (Franco et al. 2025, arXiv:2503.17513) gives layers zeros to read up to the next size that has a Hadamard matrix.
//!
//! `layerwise` (of brevitas) fuses nothing: in front of every layer whose weights or inputs are rounded stands a rotation of its own.

mod learn;
mod options;

use qfw_core::algorithm::{
    AlgorithmRecord, LearnRotations, ModelContext, ModelTransform, Needs, Phase, PlanContext, PtqAlgorithm, Stage, built,
};
use qfw_core::numeric::{Hadamard, next_sizes, uniform_u64};
use qfw_core::topology::{Linear, OnlineRotation, Place, PortName, Region, Rewrite, Rotation, RotationKind, Space, Tie};
use qfw_core::{Error, Result};

pub use options::{Learn, Matrix, Mode, Optimizer, Options, Switch, Variant, Which};

struct SpinQuant {
    options: Options,
}

impl PtqAlgorithm for SpinQuant {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        let network = self.options.learn().filter(|l| l.variant == Variant::Network).map_or(0, Learn::batch);
        Ok(Needs { network, ..Needs::default() })
    }

    fn reads_activations(&self) -> bool {
        self.options.learn().is_some_and(|l| l.variant == Variant::Network)
    }

    fn stage(&self) -> Stage<'_> {
        Stage::ModelTransform(self)
    }
}

impl ModelTransform for SpinQuant {
    fn rewrites(&self, cx: &ModelContext<'_>) -> Result<Vec<Rewrite>> {
        let mut steps = Vec::new();
        if self.options.mode == Mode::Layerwise {
            for linear in cx.linears {
                self.online(linear, &mut steps)?;
            }
            return Ok(steps);
        }
        let has = |which| self.options.rotations.contains(&which);
        if has(Which::R1) {
            steps.push(self.fused(cx, cx.topology.regions.iter().find(|r| r.space == Space::Residual), 0)?);
        }
        if has(Which::R2) {
            for (b, region) in cx.topology.regions.iter().filter(|r| r.space == Space::Values).enumerate() {
                steps.push(self.fused(cx, Some(region), 1 + b as u64)?);
            }
        }
        if has(Which::R3) {
            let rotation = known(hadamard(cx.head_dim), "queries and keys")?;
            for b in 0..cx.topology.blocks {
                for port in [PortName::QRope, PortName::KRope] {
                    let place = Place { block: Some(b), port: port.into() };
                    steps.push(Rewrite::Online(OnlineRotation { place, rotation: rotation.clone(), padded_from: None }));
                }
            }
        }
        self.expanded(cx, &mut steps)?;
        for linear in cx.linears {
            let orphan = self.options.orphan_sink && (linear.input == PortName::Ctx.into() && !has(Which::R2));
            let down = linear.input == PortName::DownIn.into() && (has(Which::R4) || self.options.orphan_sink);
            if orphan || down {
                self.online(linear, &mut steps)?;
            }
        }
        Ok(steps)
    }

    fn learns(&self) -> Option<&dyn LearnRotations> {
        self.options.learn().map(|learn| learn as &dyn LearnRotations)
    }
}

impl SpinQuant {
    /// A rotation of the region's channels, or of one head of them.
    fn fused(&self, cx: &ModelContext<'_>, region: Option<&Region>, nth: u64) -> Result<Rewrite> {
        let region = region.ok_or_else(|| Error::internal("the topology lacks a region that every model has"))?;
        let (size, keeps_mean) = match region.allows.orthogonal {
            Tie::PerKvHead { width, .. } => (width, false),
            tie => (region.width, tie == Tie::KeepsMean),
        };
        let kind = self.options.matrix.kind();
        let seed = match kind {
            RotationKind::Hadamard => 0,
            // The low bits are enough, and stay whole numbers wherever JSON is read.
            _ => uniform_u64(&[self.options.seed.unwrap_or(cx.seed), nth]) >> 32,
        };
        if kind != RotationKind::Orthogonal {
            known(hadamard(size), &region.id).map_err(|e| e.hint("set `matrix = \"orthogonal\"`"))?;
        }
        Ok(Rewrite::Rotate {
            region: region.id.clone(),
            rotation: Rotation { kind, size, seed, keeps_mean },
            learned: self.options.learn().is_some(),
        })
    }

    /// A Hadamard rotation in front of a layer, unless there is one.
    fn online(&self, linear: &Linear, steps: &mut Vec<Rewrite>) -> Result<()> {
        let place = Place { block: linear.site.block, port: linear.input };
        if steps.iter().any(|s| matches!(s, Rewrite::Online(there) if there.place == place)) {
            return Ok(());
        }
        let channels = linear.shape.1;
        let size = if self.options.online_block == 0 { channels } else { self.options.online_block };
        let fits = 1 << channels.trailing_zeros();
        if !channels.is_multiple_of(size) {
            let message = format!("`online-block` is {size}, which does not divide the {channels} channels of `{place}`");
            return Err(Error::plan("spinquant::online-block", message).hint(format!("{fits} does")));
        }
        let rotation = known(hadamard(size), &place.to_string())
            .map_err(|e| e.hint(format!("set `online-block = {fits}`: {channels} channels are then rotated {fits} at a time")))?;
        steps.push(Rewrite::Online(OnlineRotation { place, rotation, padded_from: None }));
        Ok(())
    }

    /// Wider inputs for the layers that are named, rotated online. What fused rotations reach needs none.
    fn expanded(&self, cx: &ModelContext<'_>, steps: &mut Vec<Rewrite>) -> Result<()> {
        for name in &self.options.expand {
            let named = |l: &&Linear| {
                let last = l.module.rsplit('.').next();
                [l.site.role.name(), &l.site.to_string(), &l.module].contains(&name.as_str()) || last == Some(name)
            };
            let linears: Vec<&Linear> = cx.topology.linears.iter().filter(named).collect();
            if linears.is_empty() {
                let mut roles: Vec<&str> = cx.topology.linears.iter().map(|l| l.site.role.name()).collect();
                roles.sort_unstable();
                roles.dedup();
                return Err(Error::config(
                    "config::unmatched-selector",
                    format!("`expand` names `{name}`, which is no layer of this model"),
                )
                .hint(format!("layers of this model: {}", roles.join(", "))));
            }
            for linear in linears {
                let fused = match linear.input.name {
                    PortName::DownIn => false,
                    PortName::Ctx => self.options.rotations.contains(&Which::R2),
                    _ => true,
                };
                if fused {
                    let message = format!("`expand` names `{}`, whose input is rotated by what writes it", linear.site);
                    return Err(Error::plan("spinquant::expand", message)
                        .hint("the input of `mlp.down` can be expanded, and that of `attn.o` without `r2`"));
                }
                let channels = linear.shape.1;
                let size = next_sizes(channels).nth(self.options.expansion_step - 1);
                let size = size.ok_or_else(|| Error::internal(format!("no rotation is larger than {channels}")))?;
                let place = Place { block: linear.site.block, port: linear.input };
                steps.push(Rewrite::Online(OnlineRotation { place, rotation: hadamard(size), padded_from: Some(channels) }));
            }
        }
        Ok(())
    }
}

fn hadamard(size: usize) -> Rotation {
    Rotation { kind: RotationKind::Hadamard, size, seed: 0, keeps_mean: false }
}

/// The rotation, if there is a Hadamard matrix of its size.
fn known(rotation: Rotation, what: &str) -> Result<Rotation> {
    Hadamard::new(rotation.size).map_err(|e| e.within(format!("`{what}`")))?;
    Ok(rotation)
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "spinquant",
    aliases: &["quarot", "rotation"],
    phase: Phase::Transform,
    summary: "rotates channels so that nothing stands out: QuaRot and SpinQuant, with rotations drawn or learned",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| SpinQuant { options }),
};

qfw_core::register_algorithm!(RECORD);
