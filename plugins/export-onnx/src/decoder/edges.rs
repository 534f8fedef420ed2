//! What comes before and after the blocks: ids to hidden states, hidden states to logits, and the whole in order.

use qfw_core::Result;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::model::Rope;
use qfw_core::scheme::Grid;
use qfw_core::topology::{Part, PortName as P, Role, SiteId};

use super::Decoder;
use crate::data::{Order, Origin, Packing, ZeroWidth, angle_rows};
use crate::form::{Table, Zeros};
use crate::graph::{Axis, Value};
use crate::message::{Attribute, Kind};

impl Decoder<'_> {
    /// The graph.
    pub(super) fn build(&mut self) -> Result<()> {
        let here = [Axis::Open("batch_size"), Axis::Open("sequence_length")];
        let ids = self.graph.input("input_ids", Kind::Int64, &here);
        let mask = self.graph.input("attention_mask", Kind::Int64, &[here[0], Axis::Open("total_sequence_length")]);
        let positions = self.graph.input("position_ids", Kind::Int64, &here);
        let shared = self.shared(&ids, &mask, &positions);
        let mut x = self.embedded(&ids, &positions)?;
        for b in 0..self.model.topology.blocks {
            x = self.block(b, x, &shared)?;
        }
        let x = self.norm(SiteId::global(Role::FinalNorm), &x)?;
        let x = self.pass(None, P::FinalOut, x)?;
        let logits = self.linear(SiteId::global(Role::Head), &x)?;
        let vocab = Axis::Fixed(self.model.dims.vocab);
        self.graph.publish(&logits, "logits", Kind::Float, &[here[0], here[1], vocab])?;
        Ok(())
    }

    /// Hidden states `[B, T, hidden]`.
    fn embedded(&mut self, ids: &str, positions: &str) -> Result<Value> {
        let site = SiteId::global(Role::Embed);
        let at = site.to_string();
        let native = self.native.sites.iter().find(|s| s.site == at).cloned();
        let mut x = match native {
            Some(native) => self.coded_rows(&at, native, ids)?,
            None => self.rows(site, ids)?,
        };
        let learned = SiteId::global(Role::PositionEmbed);
        if self.model.topology.param(learned, Part::Weight).is_some() {
            let mut index = positions.to_owned();
            if self.model.dims.position_offset > 0 {
                let offset = self.graph.int(self.model.dims.position_offset as i64);
                index = self.graph.op(&learned.to_string(), "Add", &[&index, &offset], Vec::new());
            }
            let table = self.rows(learned, &index)?;
            x = self.graph.op(&learned.to_string(), "Add", &[&x, &table], Vec::new());
        }
        self.at(None, P::EmbedOut, x)
    }

    /// Rows of a kept table.
    fn rows(&mut self, site: SiteId, index: &str) -> Result<Value> {
        let (name, at) = (self.tensor(site, Part::Weight)?, site.to_string());
        let (table, kind) = self.plain(&name)?;
        let rows = self.graph.op(&at, "Gather", &[&table, index], Vec::new());
        Ok(self.in_f32(&at, &rows, kind))
    }

    /// Rows of a table of codes: looked up, unpacked where several lie in a byte, and scaled tile by tile.
    fn coded_rows(&mut self, at: &str, site: NativeSite, ids: &str) -> Result<Value> {
        self.met.insert(at.to_owned());
        let (rows, cols) = site.shape;
        let layout = site.spec.granularity.layout(rows, cols);
        let Table { codes, size } = Table::of(&site.site, &site.spec, site.shape)?;
        let (bits, in_a_byte) = (codes.bits, 8 / usize::from(codes.bits));
        let packing = Packing::Blocks { bits, size: in_a_byte };
        let table = Origin::Codes { site: site.clone(), shift: codes.shift, packing };
        let table = self.graph.stored(&format!("{at}.codes"), Kind::Uint8, &[rows, cols / in_a_byte], table);
        let mut units = self.graph.op(at, "Gather", &[&table, ids], Vec::new());
        if in_a_byte > 1 {
            let (last, mask) = (self.graph.ints(&[-1]), self.graph.bytes(&[((1_u16 << bits) - 1) as u8]));
            let shifts = self.graph.bytes(&(0..in_a_byte as u8).map(|i| i * bits).collect::<Vec<_>>());
            let wide = self.graph.op(at, "Unsqueeze", &[&units, &last], Vec::new());
            let apart = self.graph.op(at, "BitShift", &[&wide, &shifts], vec![Attribute::text("direction", "RIGHT")]);
            units = self.graph.op(at, "BitwiseAnd", &[&apart, &mask], Vec::new());
        }
        // Scales are looked up as well: one row for as many tokens as a tile has.
        let mut tile_row = ids.to_owned();
        if layout.tile_rows > 1 {
            let rows = self.graph.int(layout.tile_rows as i64);
            tile_row = self.graph.op(at, "Div", &[ids, &rows], Vec::new());
        }
        let (tile_rows, tiles) = layout.grid();
        let split = self.graph.ints(&[0, 0, tiles as i64, size as i64]);
        let units = match &site.spec.grid {
            Grid::Int { .. } => self.graph.op(at, "Cast", &[&units], vec![Attribute::int("to", Kind::Float as i64)]),
            grid => {
                let (lo, hi) = grid.limits();
                let values = (lo..=hi).map(|code| if grid.holds(code) { grid.decode(code, 1.0, 0.0) } else { 0.0 }).collect::<Vec<f32>>();
                let values = self.made(&format!("{at}.values"), &[values.len()], Origin::Numbers(values));
                let index = self.graph.op(at, "Cast", &[&units], vec![Attribute::int("to", Kind::Int64 as i64)]);
                self.graph.op(at, "Gather", &[&values, &index], Vec::new())
            }
        };
        let units = self.graph.op(at, "Reshape", &[&units, &split], Vec::new());
        let alone = self.graph.ints(&[-1]);
        let per_tile = |this: &mut Self, name: &str, origin: Origin| {
            let table = this.made(&format!("{at}.{name}"), &[tile_rows, tiles], origin);
            let rows = this.graph.op(at, "Gather", &[&table, &tile_row], Vec::new());
            this.graph.op(at, "Unsqueeze", &[&rows, &alone], Vec::new())
        };
        let scale = per_tile(self, "scales", Origin::Scales { site: site.clone(), order: Order::Tiles });
        let zero = match (codes.zeros, &site.spec.grid) {
            (_, Grid::Float(_) | Grid::Levels(_)) => None,
            (Zeros::None, _) => Some(self.graph.float((1_u16 << (bits - 1)).into())),
            _ => Some(per_tile(self, "zeros", Origin::Zeros { site, order: Order::Tiles, width: ZeroWidth::Float })),
        };
        let units = match zero {
            Some(zero) => self.graph.op(at, "Sub", &[&units, &zero], Vec::new()),
            None => units,
        };
        let values = self.graph.op(at, "Mul", &[&units, &scale], Vec::new());
        let joined = self.graph.ints(&[0, 0, cols as i64]);
        Ok(self.graph.op(at, "Reshape", &[&values, &joined], Vec::new()))
    }

    /// Cosines and sines of positions, `[B, T, 1, D/2]`, looked up in a table that core computes.
    pub(super) fn angles(&mut self, positions: &str) -> Option<(Value, Value)> {
        let rope = self.model.dims.rope.clone()?;
        let (at, positions_in_all) = ("rotary", self.model.dims.max_positions);
        let index = self.table_rows(&rope, positions, positions_in_all);
        let axis = self.graph.ints(&[2]);
        let dims = [angle_rows(&rope, positions_in_all), rope.dim / 2];
        let mut look_up = |name: &str, sine: bool| {
            let origin = Origin::Angles { rope: rope.clone(), positions: positions_in_all, sine };
            let table = self.made(&format!("rotary.{name}"), &dims, origin);
            let rows = self.graph.op(at, "Gather", &[&table, &index], Vec::new());
            self.graph.op(at, "Unsqueeze", &[&rows, &axis], Vec::new())
        };
        Some((look_up("cos", false), look_up("sin", true)))
    }

    /// Where the angles of positions are. Sequences that are longer than what a model was trained for may have others: those lie behind
    /// the first.
    fn table_rows(&mut self, rope: &Rope, positions: &str, longest: usize) -> Value {
        let Some(trained) = rope.trained().filter(|t| *t < longest) else { return positions.to_owned() };
        let at = "rotary";
        let last = self.graph.op(at, "ReduceMax", &[positions], vec![Attribute::int("keepdims", 0)]);
        let trained = self.graph.int(trained as i64);
        let longer = self.graph.op(at, "GreaterOrEqual", &[&last, &trained], Vec::new());
        let zero = self.graph.int(0);
        let behind = self.graph.op(at, "Where", &[&longer, &trained, &zero], Vec::new());
        self.graph.op(at, "Add", &[positions, &behind], Vec::new())
    }
}
