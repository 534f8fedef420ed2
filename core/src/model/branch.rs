//! Low-rank branches beside linears: `y + B·(A·x)`, with `x` as it is before anything rounds it.
//!
//! A branch is two places of the block: where the linear's input passes, `A·x` is kept, and where its output passes, `B` of that is added.
//! It stands between the model's own rotations and the roundings of its activations, so it reads what is rotated but not yet rounded, and
//! what is added is there when outputs are rounded. Linears that share an `A` share the product with it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::{Block, Flow, Span, Tap, WeightSource};
use crate::error::{Error, Result};
use crate::numeric::{add, linear};
use crate::topology::{Linear, Port, PortName, Role, Topology};

/// The two factors of a branch, in the run's float type and on its device.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `[rank, in]`; those who share it hold the same tensor.
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
}

/// Where a checkpoint holds a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBranch {
    /// Stored name of the module that it runs beside.
    pub module: String,
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// The tensor of `A`, `[rank, in]`.
    pub a: String,
    /// The tensor of `B`, `[out, rank]`.
    pub b: String,
}

/// `block` with the branches that `weights` has for the linears of block `b`.
///
/// # Errors
/// If a branch cannot be read.
pub(super) fn in_block(b: u32, topology: &Topology, weights: &dyn WeightSource, block: Box<dyn Block>) -> Result<Box<dyn Block>> {
    let mut ports = Ports::default();
    for l in topology.block_linears(b) {
        if let Some(branch) = weights.branch(l.site)? {
            ports.insert(l, branch)?;
        }
    }
    Ok(if ports.reads.is_empty() { block } else { Box::new(Branched { inner: block, ports: Arc::new(ports) }) })
}

/// What happens where.
#[derive(Default)]
struct Ports {
    /// By input: the different `A` of those who read there.
    reads: BTreeMap<Port, Vec<Tensor>>,
    /// By output: the input, which `A` of it, and the rows of `B` whose products are added.
    writes: BTreeMap<Port, Vec<(Port, TensorId, Tensor)>>,
}

impl Ports {
    fn insert(&mut self, l: &Linear, branch: Branch) -> Result<()> {
        let ((rank, cols), (rows, rank2)) = (branch.a.dims2()?, branch.b.dims2()?);
        if (rows, cols) != l.shape || rank != rank2 {
            return Err(Error::internal(format!(
                "a branch of {rows}x{rank2} and {rank}x{cols} beside `{}`, which is {:?}",
                l.site, l.shape
            )));
        }
        for (port, range) in outputs(l) {
            let b = branch.b.narrow(0, range.start, range.len())?.contiguous()?;
            self.writes.entry(port).or_default().push((l.input, branch.a.id(), b));
        }
        let reads = self.reads.entry(l.input).or_default();
        if !reads.iter().any(|a| a.id() == branch.a.id()) {
            reads.push(branch.a);
        }
        Ok(())
    }
}

/// Where the rows of a linear come out. Only q, k and v in one matrix come out in several places.
fn outputs(l: &Linear) -> Vec<(Port, Range<usize>)> {
    if l.site.role != Role::AttnQkv {
        return vec![(l.output, 0..l.shape.0)];
    }
    let width = l.shape.0 / 3;
    [PortName::Q, PortName::K, PortName::V].into_iter().enumerate().map(|(i, p)| (p.into(), i * width..(i + 1) * width)).collect()
}

struct Branched {
    ports: Arc<Ports>,
    inner: Box<dyn Block>,
}

impl Block for Branched {
    fn run(&self, span: Span, flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.run(span, flow, &mut Branching { ports: &self.ports, kept: Vec::new(), then: tap })
    }
}

/// Keeps `A·x` where inputs pass, adds `B·(A·x)` where outputs do, and shows what comes of it.
struct Branching<'a> {
    ports: &'a Ports,
    /// By input and `A`.
    kept: Vec<(Port, TensorId, Tensor)>,
    then: &'a mut dyn Tap,
}

impl Tap for Branching<'_> {
    fn wants(&self, port: Port) -> bool {
        self.ports.reads.contains_key(&port) || self.ports.writes.contains_key(&port) || self.then.wants(port)
    }

    fn at(&mut self, port: Port, mut x: Tensor) -> Result<Tensor> {
        for (input, a, b) in self.ports.writes.get(&port).into_iter().flatten() {
            let kept = self.kept.iter().find(|(p, id, _)| p == input && id == a);
            let (_, _, inner) = kept.ok_or_else(|| Error::internal(format!("the branch of `{port}` never saw `{input}`")))?;
            x = add(&x, &linear(inner, b, None)?)?;
        }
        for a in self.ports.reads.get(&port).into_iter().flatten() {
            self.kept.push((port, a.id(), linear(&x, a, None)?));
        }
        if self.then.wants(port) { self.then.at(port, x) } else { Ok(x) }
    }
}
