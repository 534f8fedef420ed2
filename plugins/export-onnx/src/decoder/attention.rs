//! Masks, rotary positions, and attention with keys and values of earlier calls.
//!
//! Axes: batch `B`, heads of keys `K`, queries for each of those `G`, the tokens of this call `T`, all tokens `S`, channels of a head `D`.
//! Query head `h` reads key head `⌊h/G⌋`, so heads of queries are `[K, G]`.

use qfw_core::topology::PortName as P;
use qfw_core::{Error, Result};

use super::Decoder;
use crate::graph::{Axis, Value};
use crate::message::{Attribute, Kind};

/// What is the same in all blocks.
pub(super) struct Shared {
    /// Cosines and sines `[B, T, 1, D/2]`, where positions turn.
    pub(super) angles: Option<(Value, Value)>,
    /// Of each window that blocks have, what is added to their scores: `[B, 1, 1, T, S]`.
    masks: Vec<(Option<usize>, Value)>,
}

/// Queries, keys and values `[B, T, heads·D]`, as attention reads them.
pub(super) struct Heads {
    pub(super) q: Value,
    pub(super) k: Value,
    pub(super) v: Value,
}

impl Decoder<'_> {
    /// Masks and angles of a call.
    pub(super) fn shared(&mut self, ids: &str, attention_mask: &str, positions: &str) -> Shared {
        let at = "mask";
        let size = |this: &mut Self, of: &str| {
            let attributes = vec![Attribute::int("start", 1), Attribute::int("end", 2)];
            let shape = this.graph.op(at, "Shape", &[of], attributes);
            this.graph.op(at, "Squeeze", &[&shape], Vec::new())
        };
        let (all, here) = (size(self, attention_mask), size(self, ids));
        let first = self.graph.op(at, "Sub", &[&all, &here], Vec::new());
        let (zero, one) = (self.graph.int(0), self.graph.int(1));
        let keys = self.graph.op(at, "Range", &[&zero, &all, &one], Vec::new());
        let queries = self.graph.op(at, "Range", &[&first, &all, &one], Vec::new());
        let last_axis = self.graph.ints(&[1]);
        let queries = self.graph.op(at, "Unsqueeze", &[&queries, &last_axis], Vec::new());
        let seen = self.graph.op(at, "LessOrEqual", &[&keys, &queries], Vec::new());
        let real = self.graph.op(at, "Cast", &[attention_mask], vec![Attribute::int("to", Kind::Bool as i64)]);
        let axes = self.graph.ints(&[1, 2, 3]);
        let real = self.graph.op(at, "Unsqueeze", &[&real, &axes], Vec::new());
        let mut masks: Vec<(Option<usize>, Value)> = Vec::new();
        for window in self.model.dims.windows.clone() {
            if masks.iter().any(|(known, _)| *known == window) {
                continue;
            }
            let mut visible = seen.clone();
            if let Some(window) = window {
                let width = self.graph.int(window as i64);
                let before = self.graph.op(at, "Sub", &[&queries, &width], Vec::new());
                let within = self.graph.op(at, "Greater", &[&keys, &before], Vec::new());
                visible = self.graph.op(at, "And", &[&visible, &within], Vec::new());
            }
            let visible = self.graph.op(at, "And", &[&visible, &real], Vec::new());
            // Not −∞: a row of padding that sees nothing would have no weights.
            let (nothing, least) = (self.graph.float(0.0), self.graph.float(f32::MIN));
            masks.push((window, self.graph.op(at, "Where", &[&visible, &nothing, &least], Vec::new())));
        }
        Shared { angles: self.angles(positions), masks }
    }

    /// Queries or keys `[B, T, heads·D]`, normed and turned where the model does that.
    pub(super) fn positioned(&mut self, at: &str, x: &str, norm: Option<&str>, shared: &Shared) -> Result<Value> {
        if norm.is_none() && shared.angles.is_none() {
            return Ok(x.to_owned());
        }
        let (split, joined) = (self.graph.ints(&[0, 0, -1, self.model.dims.head_dim as i64]), self.graph.ints(&[0, 0, -1]));
        let mut heads = self.graph.op(at, "Reshape", &[x, &split], Vec::new());
        if let Some(weight) = norm {
            heads = self.rms_norm(at, &heads, weight);
        }
        if let Some((cos, sin)) = &shared.angles {
            let halves = self.graph.ops(at, "Split", &[&heads], 2, vec![Attribute::int("axis", -1), Attribute::int("num_outputs", 2)]);
            let mut product = |x: &str, y: &str| self.graph.op(at, "Mul", &[x, y], Vec::new());
            let (a, b) = (product(&halves[0], cos), product(&halves[1], sin));
            let (c, d) = (product(&halves[1], cos), product(&halves[0], sin));
            let first = self.graph.op(at, "Sub", &[&a, &b], Vec::new());
            let second = self.graph.op(at, "Add", &[&c, &d], Vec::new());
            heads = self.graph.op(at, "Concat", &[&first, &second], vec![Attribute::int("axis", -1)]);
        }
        Ok(self.graph.op(at, "Reshape", &[&heads, &joined], Vec::new()))
    }

    /// What the output projection reads, `[B, T, heads·D]`; keys and values join those of earlier calls.
    pub(super) fn attention(&mut self, b: u32, heads: &Heads, shared: &Shared) -> Result<Value> {
        let (at, d) = (format!("blocks.{b}.attention"), &self.model.dims);
        let (kv, channels) = (d.kv_heads as i64, d.head_dim as i64);
        let (group, scale, window) = ((d.heads / d.kv_heads) as i64, d.score_scale[b as usize], d.windows[b as usize]);
        let mask = shared.masks.iter().find(|(w, _)| *w == window).map(|(_, mask)| mask);
        let mask = mask.ok_or_else(|| Error::internal("a block whose window has no mask"))?;
        let shape = self.graph.ints(&[0, 0, kv, group, channels]);
        let q = self.graph.op(&at, "Reshape", &[&heads.q, &shape], Vec::new());
        let q = self.graph.op(&at, "Transpose", &[&q], vec![Attribute::ints("perm", &[0, 2, 3, 1, 4])]);
        let k = self.with_past(b, "key", &heads.k)?;
        let v = self.with_past(b, "value", &heads.v)?;
        let k = self.graph.op(&at, "Transpose", &[&k], vec![Attribute::ints("perm", &[0, 1, 2, 4, 3])]);
        let scores = self.graph.op(&at, "MatMul", &[&q, &k], Vec::new());
        let scale = self.graph.float(scale as f32);
        let scores = self.graph.op(&at, "Mul", &[&scores, &scale], Vec::new());
        let scores = self.graph.op(&at, "Add", &[&scores, mask], Vec::new());
        let probs = self.graph.op(&at, "Softmax", &[&scores], vec![Attribute::int("axis", -1)]);
        let probs = self.at(Some(b), P::Probs, probs)?;
        let mixed = self.graph.op(&at, "MatMul", &[&probs, &v], Vec::new());
        let mixed = self.graph.op(&at, "Transpose", &[&mixed], vec![Attribute::ints("perm", &[0, 3, 1, 2, 4])]);
        let joined = self.graph.ints(&[0, 0, kv * group * channels]);
        Ok(self.graph.op(&at, "Reshape", &[&mixed, &joined], Vec::new()))
    }

    /// Keys or values `[B, K, 1, S, D]` of all calls.
    fn with_past(&mut self, b: u32, what: &str, x: &str) -> Result<Value> {
        let (at, d) = (format!("blocks.{b}.attention.{what}"), &self.model.dims);
        let (kv, channels) = (d.kv_heads, d.head_dim);
        let axes = |length| [Axis::Open("batch_size"), Axis::Fixed(kv), Axis::Open(length), Axis::Fixed(channels)];
        let past = self.graph.input(&format!("past_key_values.{b}.{what}"), Kind::Float, &axes("past_sequence_length"));
        let shape = self.graph.ints(&[0, 0, kv as i64, channels as i64]);
        let heads = self.graph.op(&at, "Reshape", &[x, &shape], Vec::new());
        let heads = self.graph.op(&at, "Transpose", &[&heads], vec![Attribute::ints("perm", &[0, 2, 1, 3])]);
        let all = self.graph.op(&at, "Concat", &[&past, &heads], vec![Attribute::int("axis", 2)]);
        let all = self.graph.publish(&all, &format!("present.{b}.{what}"), Kind::Float, &axes("total_sequence_length"))?;
        let axis = self.graph.ints(&[2]);
        Ok(self.graph.op(&at, "Unsqueeze", &[&all, &axis], Vec::new()))
    }
}
