//! What a model does to the activations that pass a place, beside what its architecture does.
//!
//! ```text
//! rotate    x ↦ x·R     every stretch of R's size; x gets zeros at its end first where R is larger
//! multiply  x ↦ x⊙m     one factor for each channel, behind the rotation where a place has both
//! ```
//!
//! A rotation is drawn, or stated by its kind, before the run. A multiplier is a parameter of the model: a vector of ones that writes a
//! region of its own, read by the linears behind it. Scaling that region is then what scaling behind a norm is, and whatever finds
//! factors, fuses them, stores them or rounds them to what is stored needs to know nothing of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Allows, Axis, Linear, ParamDecl, Part, Place, Port, PortName, Region, Rotation, SiteId, Slot, Space, Tie, Topology};
use crate::error::{Error, Result};

/// One thing that is done to the activations at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnlineStep {
    /// They are rotated.
    Rotation(OnlineRotation),
    /// They are multiplied by a vector.
    Multiplier(Place),
}

impl OnlineStep {
    /// Where.
    pub fn place(&self) -> Place {
        match self {
            Self::Rotation(rotation) => rotation.place,
            Self::Multiplier(place) => *place,
        }
    }

    /// The rotation, if it is one.
    pub fn rotation(&self) -> Option<&OnlineRotation> {
        match self {
            Self::Rotation(rotation) => Some(rotation),
            Self::Multiplier(_) => None,
        }
    }
}

/// A rotation of activations that the forward pass carries out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OnlineRotation {
    /// Where.
    pub place: Place,
    /// By what: every stretch of its size.
    pub rotation: Rotation,
    /// The channels there are at the place, if zeros are to be added up to the size of the rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padded_from: Option<usize>,
}

impl OnlineRotation {
    /// The linears that read the place, each of which the rotation fits.
    pub(super) fn readers<'a>(&self, topology: &'a Topology) -> Result<Vec<&'a Linear>> {
        let (place, size) = (self.place, self.rotation.size);
        let readers = topology.readers(place);
        for linear in &readers {
            let columns = linear.shape.1;
            match self.padded_from {
                Some(from) if columns != from || size <= from => {
                    let message = format!("`{place}` has {columns} channels, and is to be padded from {from} to {size}");
                    return Err(Error::plan("topology::padding", message).hint("inputs are padded from what they are to a size above that"));
                }
                None if size == 0 || columns % size != 0 => {
                    let message = format!("`{place}` has {columns} channels, which a rotation of {size} does not divide");
                    return Err(Error::plan("topology::rotation-size", message).hint("choose a size that divides the channels"));
                }
                _ => {}
            }
        }
        Ok(readers)
    }

    /// Whether a model has the place, and the rotation fits what passes there: what linears read, or heads of `head_dim` channels.
    ///
    /// # Errors
    /// If not.
    fn fits(&self, topology: &Topology, head_dim: usize) -> Result<()> {
        let (place, size) = (self.place, self.rotation.size);
        if !self.readers(topology)?.is_empty() {
            return Ok(());
        }
        let heads = [PortName::QRope, PortName::KRope].map(Port::from).contains(&place.port);
        if !heads || place.block.is_none_or(|b| b >= topology.blocks) {
            let message = format!("`{place}` is no place of this model at which activations can be rotated");
            return Err(Error::plan("topology::no-such-place", message).hint("that is what linears read, and queries and keys of heads"));
        }
        if self.padded_from.is_some() || size == 0 || !head_dim.is_multiple_of(size) {
            let message = format!("`{place}` has heads of {head_dim} channels, which {} does not fit", self.rotation);
            return Err(Error::plan("topology::rotation-size", message).hint("choose a size that divides the channels"));
        }
        Ok(())
    }
}

impl Topology {
    /// The linears that read a place.
    pub fn readers(&self, place: Place) -> Vec<&Linear> {
        self.linears.iter().filter(|l| l.site.block == place.block && l.input == place.port).collect()
    }

    /// Makes this the topology of a model that does `steps`, as a checkpoint says; its heads have `head_dim` channels.
    ///
    /// # Errors
    /// If it has no such places, something is done twice at one of them, or a rotation does not fit.
    pub fn doing(&mut self, steps: &[OnlineStep], head_dim: usize) -> Result<()> {
        steps.iter().try_for_each(|step| match step {
            OnlineStep::Rotation(rotation) => rotation.fits(self, head_dim).and_then(|()| self.widen(rotation)),
            OnlineStep::Multiplier(place) => self.multiply(*place),
        })
    }

    /// Makes what reads a place as wide as a rotation there wants it. What writes there can no longer be scaled against what reads.
    ///
    /// # Errors
    /// If the rotation pads another number of channels than there are, or to no more than those, or does not divide them.
    pub fn widen(&mut self, online: &OnlineRotation) -> Result<()> {
        let readers: BTreeSet<SiteId> = online.readers(self)?.iter().map(|l| l.site).collect();
        if online.padded_from.is_some() {
            let size = online.rotation.size;
            self.linears.iter_mut().filter(|l| readers.contains(&l.site)).for_each(|l| l.shape.1 = size);
            self.params.iter_mut().filter(|p| p.part == Part::Weight && readers.contains(&p.site)).for_each(|p| p.shape[1] = size);
        }
        let reads = |s: &Slot| s.axis == Axis::Columns && readers.contains(&s.site);
        for region in self.regions.iter_mut().filter(|r| r.space != Space::Residual && r.consumers.iter().any(reads)) {
            (region.allows.diagonal, region.allows.permutation) = (Tie::Never, Tie::Never);
        }
        Ok(())
    }

    /// Adds a multiplier before the linears that read a place: a parameter of theirs, and the region that it writes.
    ///
    /// # Errors
    /// If no linear of a block reads there, or there is a multiplier already.
    pub fn multiply(&mut self, place: Place) -> Result<()> {
        let readers = self.readers(place);
        let Some(first) = readers.first().filter(|_| place.block.is_some()) else {
            let message = format!("`{place}` is no place of this model at which activations can be multiplied");
            return Err(
                Error::plan("topology::no-such-place", message).hint("that is what linears of blocks read, such as `blocks.0.down.in`")
            );
        };
        let (site, width) = (first.site, first.shape.1);
        if self.param(site, Part::Multiplier).is_some() {
            return Err(Error::plan("topology::multiplied-twice", format!("`{place}` is multiplied twice")).hint("name it once"));
        }
        let columns = |l: &&Linear| Slot { site: l.site, part: Part::Weight, axis: Axis::Columns, range: None };
        let consumers: Vec<Slot> = readers.iter().map(columns).collect();
        let vector = Slot { site, part: Part::Multiplier, axis: Axis::Rows, range: None };
        let tensor = format!("{}.multiplier", first.module);
        self.params.push(ParamDecl { site, part: Part::Multiplier, tensor, shape: vec![width], transposed: false });
        for region in self.regions.iter_mut().filter(|r| r.block == place.block && r.consumers == consumers) {
            region.companions.push(vector.clone());
        }
        self.regions.push(Region {
            // A place may have the name of the region that was there before.
            id: format!("{place}.multiplied"),
            space: Space::Multiplied,
            block: place.block,
            width,
            producers: vec![vector],
            consumers,
            companions: Vec::new(),
            allows: Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never },
        });
        Ok(())
    }

    /// The places before linears of blocks at which nothing that writes the channels can be scaled, while all that reads them can: a
    /// scaling takes a multiplier there.
    pub fn unscaled_places(&self) -> Vec<Place> {
        let closed = |r: &&Region| r.block.is_some() && !r.may_be_scaled() && r.consumers.iter().all(|s| s.axis == Axis::Columns);
        let place = |r: &Region| {
            let first = self.linear(r.consumers.first()?.site)?;
            let place = Place { block: r.block, port: first.input };
            (self.readers(place).len() == r.consumers.len()).then_some(place)
        };
        self.regions.iter().filter(closed).filter_map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::topology::{Role, RotationKind, of_config};

    fn gpt2() -> Topology {
        of_config(&json!({"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 2, "vocab_size": 9, "n_positions": 5}))
    }

    fn opt() -> Topology {
        of_config(&json!({
            "model_type": "opt", "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9, "ffn_dim": 8,
            "max_position_embeddings": 5, "word_embed_proj_dim": 4, "do_layer_norm_before": true, "activation_function": "relu"
        }))
    }

    fn llama() -> Topology {
        of_config(&json!({
            "model_type": "llama", "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 150
        }))
    }

    fn names(places: Vec<Place>) -> Vec<String> {
        places.iter().map(ToString::to_string).collect()
    }

    fn rotated(port: PortName, size: usize) -> OnlineRotation {
        let rotation = Rotation { kind: RotationKind::Hadamard, size, seed: 0, keeps_mean: false };
        OnlineRotation { place: Place { block: Some(0), port: port.into() }, rotation, padded_from: None }
    }

    #[test]
    fn only_what_no_writer_can_take_needs_a_multiplier() {
        assert_eq!(names(gpt2().unscaled_places()), ["blocks.0.down.in", "blocks.1.down.in"]);
        // A ReLU lets factors through, and so does the product with a gate.
        assert_eq!(names(opt().unscaled_places()), [""; 0]);
        assert_eq!(names(llama().unscaled_places()), [""; 0]);
    }

    #[test]
    fn a_rotation_on_the_way_parts_those_who_write_from_those_who_read() {
        let mut t = llama();
        for (port, size) in [(PortName::AttnIn, 16), (PortName::QRope, 4), (PortName::Ctx, 4), (PortName::DownIn, 8)] {
            t.widen(&rotated(port, size)).unwrap();
        }
        let scaled: Vec<&str> = t.regions.iter().filter(|r| r.block.is_some() && r.may_be_scaled()).map(|r| r.id.as_str()).collect();
        let before = llama();
        let open: Vec<&str> = before.regions.iter().filter(|r| r.block.is_some() && r.may_be_scaled()).map(|r| r.id.as_str()).collect();
        let closed: Vec<&str> = open.into_iter().filter(|id| !scaled.contains(id)).collect();
        assert_eq!(closed, ["blocks.0.attn.in", "blocks.0.values", "blocks.0.mlp.hidden"]);
        assert_eq!(names(t.unscaled_places()), ["blocks.0.attn.in", "blocks.0.ctx", "blocks.0.down.in"]);
        // Behind a rotation, channels of heads that shared theirs share nothing.
        t.multiply(Place { block: Some(0), port: PortName::Ctx.into() }).unwrap();
        assert_eq!(t.regions.last().unwrap().width, 16);
        t.multiply(Place { block: Some(0), port: PortName::AttnIn.into() }).unwrap();
        let ids: BTreeSet<&str> = t.regions.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids.len(), t.regions.len(), "two regions of one name");
    }

    #[test]
    fn a_multiplier_writes_a_region_of_its_own_and_follows_permutations_of_the_other() {
        let mut t = gpt2();
        let place = Place { block: Some(1), port: PortName::DownIn.into() };
        t.multiply(place).unwrap();
        let down = SiteId::in_block(1, Role::MlpDown);
        let param = t.param(down, Part::Multiplier).unwrap();
        assert_eq!((param.tensor.as_str(), &param.shape[..]), ("h.1.mlp.c_proj.multiplier", &[16][..]));
        let of = |id: &str| t.regions.iter().find(|r| r.id == id).unwrap();
        let new = of("blocks.1.down.in.multiplied");
        assert_eq!((new.space, new.width, new.allows.diagonal), (Space::Multiplied, 16, Tie::Free));
        assert_eq!(new.producers, of("blocks.1.mlp.hidden").companions);
        assert_eq!(new.consumers, of("blocks.1.mlp.hidden").consumers);
        assert!(of("blocks.0.mlp.hidden").companions.is_empty());
        let error = t.multiply(place).unwrap_err();
        assert_eq!((error.code(), error.to_string()), ("topology::multiplied-twice", "`blocks.1.down.in` is multiplied twice".to_owned()));
    }

    #[test]
    fn places_that_no_linear_of_a_block_reads_are_refused() {
        for (block, port) in [(Some(0), PortName::Act), (Some(7), PortName::DownIn), (None, PortName::FinalOut)] {
            let place = Place { block, port: port.into() };
            let error = gpt2().multiply(place).unwrap_err();
            assert_eq!(error.to_string(), format!("`{place}` is no place of this model at which activations can be multiplied"));
        }
    }
}
