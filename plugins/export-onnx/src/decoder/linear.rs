//! Linear layers: `y = x·Wᵀ + b`, with the branch `(x·Aᵀ)·Bᵀ` beside it where there is one.

use qfw_core::Result;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::topology::{Part, SiteId};

use super::{Decoder, Passed};
use crate::accept::layer;
use crate::data::{Order, Origin, Packing, ZeroWidth};
use crate::form::{Codes, Held, Spread, Zeros};
use crate::graph::Value;
use crate::message::{Attribute, Kind};
use crate::rounding::clipped;

impl Decoder<'_> {
    /// The output of a linear layer.
    pub(super) fn linear(&mut self, site: SiteId, x: &Passed) -> Result<Value> {
        let at = site.to_string();
        let native = self.native.sites.iter().find(|s| s.site == at).cloned();
        let mut y = match native {
            Some(native) => self.held(&at, native, &x.rounded)?,
            None => self.kept(&at, site, &x.rounded)?,
        };
        if self.model.topology.linear(site).is_some_and(|l| l.bias) {
            let bias = self.tensor(site, Part::Bias)?;
            let bias = self.float(&bias)?;
            y = self.graph.op(&at, "Add", &[&y, &bias], Vec::new());
        }
        let Some(branch) = self.native.branches.iter().find(|b| b.site == at).cloned() else { return Ok(y) };
        let (rank, (rows, cols)) = (branch.rank, branch.shape);
        let inner = match self.read.get(&branch.a) {
            Some(inner) => inner.clone(),
            None => {
                let origin = Origin::Factor { branch: branch.clone(), second: false };
                let a = self.graph.stored(&format!("{at}.branch.a"), Kind::Float, &[cols, rank], origin);
                let inner = self.graph.op(&at, "MatMul", &[&x.exact, &a], Vec::new());
                self.read.insert(branch.a.clone(), inner.clone());
                inner
            }
        };
        let b = Origin::Factor { branch, second: true };
        let b = self.graph.stored(&format!("{at}.branch.b"), Kind::Float, &[rank, rows], b);
        let beside = self.graph.op(&at, "MatMul", &[&inner, &b], Vec::new());
        self.met.insert(format!("branch {at}"));
        Ok(self.graph.op(&at, "Add", &[&y, &beside], Vec::new()))
    }

    /// With the weight as the checkpoint has it.
    fn kept(&mut self, at: &str, site: SiteId, x: &str) -> Result<Value> {
        let name = self.tensor(site, Part::Weight)?;
        let turned = self.model.topology.linear(site).is_some_and(|l| l.transposed);
        let mut weight = self.float(&name)?;
        if !turned {
            weight = self.graph.op(at, "Transpose", &[&weight], vec![Attribute::ints("perm", &[1, 0])]);
        }
        Ok(self.graph.op(at, "MatMul", &[x, &weight], Vec::new()))
    }

    /// With codes.
    fn held(&mut self, at: &str, site: NativeSite, x: &str) -> Result<Value> {
        self.met.insert(at.to_owned());
        let held = self.form.held(layer(&self.native.activations, &site.site, &site.module, &site.spec, site.shape))?;
        let (rows, cols) = site.shape;
        match held {
            Held::Blocks { codes, size } => {
                let (bits, n) = (codes.bits, cols.div_ceil(size));
                let blob = size * usize::from(bits) / 8;
                let packing = Packing::Blocks { bits, size };
                let weight = Origin::Codes { site: site.clone(), shift: codes.shift, packing };
                let weight = self.graph.stored(&format!("{at}.codes"), Kind::Uint8, &[rows, n, blob], weight);
                let scales = Origin::Scales { site: site.clone(), order: Order::Blocks(size) };
                let scales = self.graph.stored(&format!("{at}.scales"), Kind::Float, &[rows, n], scales);
                let mut inputs = vec![x.to_owned(), weight, scales];
                let zeros = |width| Origin::Zeros { site, order: Order::Blocks(size), width };
                let name = format!("{at}.zeros");
                match codes.zeros {
                    Zeros::None => {}
                    Zeros::Integer => {
                        let row = (n * usize::from(bits)).div_ceil(8);
                        inputs.push(self.graph.stored(&name, Kind::Uint8, &[rows, row], zeros(ZeroWidth::RowsOf(bits))));
                    }
                    Zeros::Float => inputs.push(self.graph.stored(&name, Kind::Float, &[rows, n], zeros(ZeroWidth::Float))),
                }
                let attributes = [("K", cols), ("N", rows), ("bits", usize::from(bits)), ("block_size", size)];
                let attributes = attributes.into_iter().map(|(name, n)| Attribute::int(name, n as i64)).collect();
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                Ok(self.graph.contrib(at, "MatMulNBits", &inputs, attributes))
            }
            Held::Dequantized { kind, codes, clip, spread } => {
                let weight = self.dequantized(at, site, (kind, codes), clip, spread);
                Ok(self.graph.op(at, "MatMul", &[x, &weight], Vec::new()))
            }
        }
    }

    /// A weight `[in, out]` behind `DequantizeLinear`.
    fn dequantized(&mut self, at: &str, site: NativeSite, (kind, codes): (Kind, Codes), clip: Option<(i32, i32)>, spread: Spread) -> Value {
        let (rows, cols) = site.shape;
        let packing = Packing::Turned { bits: codes.bits };
        let weight = Origin::Codes { site: site.clone(), shift: codes.shift, packing };
        let mut weight = self.graph.stored(&format!("{at}.codes"), kind, &[cols, rows], weight);
        if let Some(range) = clip {
            weight = clipped(&mut self.graph, at, kind, &weight, range);
        }
        let (order, dims, attributes) = match spread {
            Spread::Tensor => (Order::Tiles, vec![], vec![]),
            Spread::Channel => (Order::Rows, vec![rows], vec![Attribute::int("axis", 1)]),
            Spread::Blocks(size) => {
                let attributes = vec![Attribute::int("axis", 0), Attribute::int("block_size", size as i64)];
                (Order::Turned(size), vec![cols.div_ceil(size), rows], attributes)
            }
        };
        let scales = Origin::Scales { site: site.clone(), order };
        let mut inputs = vec![weight, self.graph.stored(&format!("{at}.scales"), Kind::Float, &dims, scales)];
        if codes.zeros == Zeros::Integer {
            let zeros = Origin::Zeros { site, order, width: ZeroWidth::Stream(codes.bits) };
            inputs.push(self.graph.stored(&format!("{at}.zeros"), kind, &dims, zeros));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.graph.op(at, "DequantizeLinear", &inputs, attributes)
    }
}
