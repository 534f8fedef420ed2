//! Rotations of activations that are part of the model: places at which a block turns what passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::{Block, Edges, Flow, Span, Tap};
use crate::error::{Error, Result};
use crate::numeric::{step1, with_slice};
use crate::topology::{OnlineRotation, Port, Turn};

/// Every rotation a model carries out, by block (`None`: around the blocks) and port.
#[derive(Clone, Default)]
pub struct Online {
    places: BTreeMap<Option<u32>, Arc<Ports>>,
}

/// By what a port is turned, and from how many channels it is padded before.
type Ports = BTreeMap<Port, (Arc<Turn>, Option<usize>)>;

impl Online {
    /// Puts rotations in their places.
    ///
    /// # Errors
    /// If there is no such rotation, or two are at one place.
    pub fn new(all: &[OnlineRotation]) -> Result<Self> {
        let mut places: BTreeMap<Option<u32>, Ports> = BTreeMap::new();
        let mut turns: Vec<(&OnlineRotation, Arc<Turn>)> = Vec::new();
        for o in all {
            // Blocks mostly share theirs.
            let turn = match turns.iter().find(|(known, _)| known.rotation == o.rotation) {
                Some((_, turn)) => Arc::clone(turn),
                None => Arc::new(o.rotation.turn()?),
            };
            turns.push((o, Arc::clone(&turn)));
            if places.entry(o.place.block).or_default().insert(o.place.port, (turn, o.padded_from)).is_some() {
                return Err(Error::input("checkpoint::malformed", format!("`{}` is rotated twice", o.place)));
            }
        }
        Ok(Self { places: places.into_iter().map(|(b, ports)| (b, Arc::new(ports))).collect() })
    }

    /// `block` with the rotations of block `b`.
    pub fn in_block(&self, b: u32, block: Box<dyn Block>) -> Box<dyn Block> {
        match self.places.get(&Some(b)) {
            Some(ports) => Box::new(Rotated { inner: block, ports: Arc::clone(ports) }),
            None => block,
        }
    }

    /// `edges` with the rotations around the blocks.
    pub fn at_edges(&self, edges: Box<dyn Edges>) -> Box<dyn Edges> {
        match self.places.get(&None) {
            Some(ports) => Box::new(Rotated { inner: edges, ports: Arc::clone(ports) }),
            None => edges,
        }
    }
}

struct Rotated<T: ?Sized> {
    ports: Arc<Ports>,
    inner: Box<T>,
}

impl Block for Rotated<dyn Block> {
    fn run(&self, span: Span, flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.run(span, flow, &mut Rotating { ports: &self.ports, then: tap })
    }
}

impl Edges for Rotated<dyn Edges> {
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.embed(ids, position, &mut Rotating { ports: &self.ports, then: tap })
    }

    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor> {
        self.inner.finish(flow, &mut Rotating { ports: &self.ports, then: tap })
    }

    fn head_rows(&self, range: std::ops::Range<usize>) -> Result<Tensor> {
        self.inner.head_rows(range)
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }
}

/// Rotates, then shows what was rotated.
struct Rotating<'a> {
    ports: &'a Ports,
    then: &'a mut dyn Tap,
}

impl Tap for Rotating<'_> {
    fn wants(&self, port: Port) -> bool {
        self.ports.contains_key(&port) || self.then.wants(port)
    }

    fn at(&mut self, port: Port, mut x: Tensor) -> Result<Tensor> {
        if let Some((turn, padded_from)) = self.ports.get(&port) {
            if let Some(from) = padded_from {
                x = x.pad_with_zeros(D::Minus1, 0, turn.size().saturating_sub(*from))?;
            }
            x = if x.track_op() {
                let (turned, turn) = (rotate(turn, &x.detach(), port)?, Arc::clone(turn));
                step1(&x, turned, move |g| turned_back(&turn, g))?
            } else {
                rotate(turn, &x, port)?
            };
        }
        if self.then.wants(port) { self.then.at(port, x) } else { Ok(x) }
    }
}

/// `x` with every stretch of its rows turned.
fn rotate(turn: &Turn, x: &Tensor, port: Port) -> Result<Tensor> {
    let channels = *x.dims().last().unwrap_or(&0);
    if !channels.is_multiple_of(turn.size()) {
        return Err(Error::internal(format!("`{port}` has {channels} channels, and a rotation of {}", turn.size())));
    }
    let (shape, dtype, device) = (x.shape().clone(), x.dtype(), x.device());
    let host = x.to_device(&Device::Cpu)?;
    let turned = if dtype == DType::F64 {
        let mut values = with_slice::<f64, _>(&host, |v| Ok(v.to_vec()))?;
        turn.rows(&mut values);
        Tensor::from_vec(values, shape, &Device::Cpu)?
    } else {
        let mut values = with_slice::<f32, _>(&host.to_dtype(DType::F32)?, |v| Ok(v.to_vec()))?;
        turn.rows_f32(&mut values);
        Tensor::from_vec(values, shape, &Device::Cpu)?
    };
    Ok(turned.to_dtype(dtype)?.to_device(device)?)
}

/// `g` with every stretch of its rows turned back: the gradient of what was turned.
fn turned_back(turn: &Turn, g: &Tensor) -> Result<Tensor> {
    let mut values = with_slice::<f64, _>(&g.to_device(&Device::Cpu)?.to_dtype(DType::F64)?, |v| Ok(v.to_vec()))?;
    turn.rows_back(&mut values);
    Ok(Tensor::from_vec(values, g.shape().clone(), &Device::Cpu)?.to_dtype(g.dtype())?.to_device(g.device())?)
}
