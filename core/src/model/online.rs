//! What is done to activations that is part of the model: places at which a block rotates what passes, or multiplies it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::{Block, Edges, Flow, Span, Tap, WeightSource};
use crate::error::{Error, Result};
use crate::numeric::{step1, with_slice};
use crate::topology::{OnlineRotation, OnlineStep, Part, Place, Port, SiteId, Topology, Turn};

/// All that a model does to the activations that pass its places, by block (`None`: around the blocks) and port.
#[derive(Clone, Default)]
pub struct Online {
    places: BTreeMap<Option<u32>, BTreeMap<Port, Planned>>,
}

/// What is to be done at a port.
#[derive(Clone, Default)]
struct Planned {
    turn: Option<Rotation>,
    /// The layer that the vector belongs to.
    multiplier: Option<SiteId>,
}

/// A rotation, and from how many channels what it turns is padded before.
#[derive(Clone)]
struct Rotation {
    turn: Arc<Turn>,
    padded_from: Option<usize>,
}

/// What is done at a port, in this order.
struct Done {
    turn: Option<Rotation>,
    /// One factor for each channel.
    factors: Option<Tensor>,
}

type Ports = BTreeMap<Port, Done>;

impl Online {
    /// Puts the steps of a model in their places; `topology` is that of the model with them.
    ///
    /// # Errors
    /// If there is no such rotation or multiplier, or two of a kind are at one place.
    pub fn new(steps: &[OnlineStep], topology: &Topology) -> Result<Self> {
        let mut online = Self::default();
        let mut turns: Vec<(&OnlineRotation, Arc<Turn>)> = Vec::new();
        for step in steps {
            let slot = online.at(step.place());
            let twice = match step {
                OnlineStep::Rotation(rotation) => {
                    // Blocks mostly share theirs.
                    let turn = match turns.iter().find(|(known, _)| known.rotation == rotation.rotation) {
                        Some((_, turn)) => Arc::clone(turn),
                        None => Arc::new(rotation.rotation.turn()?),
                    };
                    turns.push((rotation, Arc::clone(&turn)));
                    slot.turn.replace(Rotation { turn, padded_from: rotation.padded_from }).is_some()
                }
                OnlineStep::Multiplier(place) => {
                    let of = |site: &SiteId| topology.param(*site, Part::Multiplier).is_some();
                    let site = topology.readers(*place).first().map(|l| l.site).filter(of);
                    let site = site.ok_or_else(|| Error::internal(format!("`{place}` has no multiplier")))?;
                    slot.multiplier.replace(site).is_some()
                }
            };
            if twice {
                let what = if step.rotation().is_some() { "rotated" } else { "multiplied" };
                return Err(Error::input("checkpoint::malformed", format!("`{}` is {what} twice", step.place())));
            }
        }
        Ok(online)
    }

    fn at(&mut self, place: Place) -> &mut Planned {
        self.places.entry(place.block).or_default().entry(place.port).or_default()
    }

    /// `block`, which is block `b`, with what is done in it; the vectors are in `weights`.
    ///
    /// # Errors
    /// If a vector cannot be read.
    pub fn in_block(&self, b: u32, block: Box<dyn Block>, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Ok(match self.ports(Some(b), weights)? {
            Some(ports) => Box::new(Doing { inner: block, ports }),
            None => block,
        })
    }

    /// `edges` with what is done around the blocks; the vectors are in `weights`.
    ///
    /// # Errors
    /// If a vector cannot be read.
    pub fn at_edges(&self, edges: Box<dyn Edges>, weights: &dyn WeightSource) -> Result<Box<dyn Edges>> {
        Ok(match self.ports(None, weights)? {
            Some(ports) => Box::new(Doing { inner: edges, ports }),
            None => edges,
        })
    }

    fn ports(&self, block: Option<u32>, weights: &dyn WeightSource) -> Result<Option<Ports>> {
        let Some(planned) = self.places.get(&block) else { return Ok(None) };
        let done = |Planned { turn, multiplier }: &Planned| -> Result<Done> {
            let factors = multiplier.map(|site| weights.get(site, Part::Multiplier)).transpose()?;
            Ok(Done { turn: turn.clone(), factors })
        };
        planned.iter().map(|(port, planned)| Ok((*port, done(planned)?))).collect::<Result<Ports>>().map(Some)
    }
}

struct Doing<T: ?Sized> {
    ports: Ports,
    inner: Box<T>,
}

impl Block for Doing<dyn Block> {
    fn run(&self, span: Span, flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.run(span, flow, &mut Changing { ports: &self.ports, then: tap })
    }
}

impl Edges for Doing<dyn Edges> {
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.embed(ids, position, &mut Changing { ports: &self.ports, then: tap })
    }

    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor> {
        self.inner.finish(flow, &mut Changing { ports: &self.ports, then: tap })
    }

    fn head_rows(&self, range: std::ops::Range<usize>) -> Result<Tensor> {
        self.inner.head_rows(range)
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }
}

/// Does what is to be done, then shows what came of it.
struct Changing<'a> {
    ports: &'a Ports,
    then: &'a mut dyn Tap,
}

impl Tap for Changing<'_> {
    fn wants(&self, port: Port) -> bool {
        self.ports.contains_key(&port) || self.then.wants(port)
    }

    fn at(&mut self, port: Port, mut x: Tensor) -> Result<Tensor> {
        if let Some(Done { turn, factors }) = self.ports.get(&port) {
            if let Some(rotation) = turn {
                x = rotated(rotation, x, port)?;
            }
            if let Some(factors) = factors {
                x = multiplied(factors, &x, port)?;
            }
        }
        if self.then.wants(port) { self.then.at(port, x) } else { Ok(x) }
    }
}

/// `x` padded and turned.
fn rotated(Rotation { turn, padded_from }: &Rotation, mut x: Tensor, port: Port) -> Result<Tensor> {
    if let Some(from) = padded_from {
        x = x.pad_with_zeros(D::Minus1, 0, turn.size().saturating_sub(*from))?;
    }
    if !x.track_op() {
        return rotate(turn, &x, port);
    }
    let (turned, turn) = (rotate(turn, &x.detach(), port)?, Arc::clone(turn));
    step1(&x, turned, move |g| turned_back(&turn, g))
}

/// `x ⊙ m` for every row; the gradient takes the same factors.
fn multiplied(factors: &Tensor, x: &Tensor, port: Port) -> Result<Tensor> {
    let channels = x.dims().last().copied().unwrap_or(0);
    if factors.dims() != [channels] {
        return Err(Error::internal(format!("`{port}` has {channels} channels, and a multiplier of {:?}", factors.dims())));
    }
    if !x.track_op() {
        return Ok(x.broadcast_mul(factors)?);
    }
    let (value, factors) = (x.detach().broadcast_mul(factors)?, factors.detach());
    step1(x, value, move |g| Ok(g.broadcast_mul(&factors)?))
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
