//! Activations in low precision: a block whose places round what passes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{Block, Edges, Flow, Span, Tap};
use crate::error::{Error, Result};
use crate::numeric::{Extremes, Ranges, fake_quantize, step1, vectorize, with_slice};
use crate::observer::ScaleRule;
use crate::scheme::{QParams, QuantSpec, ScaleForm, Timing};
use crate::topology::{Place, Port};

/// How activations at one place are rounded.
#[derive(Clone, Debug)]
pub struct ActivationQuant {
    /// The place.
    pub place: Place,
    /// The scheme.
    pub spec: QuantSpec,
    /// The parameters, where they are static.
    pub params: Option<QParams>,
    rule: ScaleRule,
}

impl ActivationQuant {
    /// The rounding at `place`. Static schemes need their parameters.
    ///
    /// # Errors
    /// If a static scheme has none, or a dynamic one some.
    pub fn new(place: Place, spec: QuantSpec, params: Option<QParams>) -> Result<Self> {
        if (spec.timing == Timing::Static) != params.is_some() {
            return Err(Error::internal(format!("activations at `{place}` are {:?}, and their parameters do not fit that", spec.timing)));
        }
        let rule = ScaleRule::of(&spec, 0.0);
        Ok(Self { place, spec, params, rule })
    }

    /// `x`, rounded. Its gradient passes straight through, but for what a fixed range cuts off.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if !x.track_op() {
            return self.rounded(x);
        }
        let frozen = x.detach();
        let value = self.rounded(&frozen)?;
        let beyond = self.beyond(&frozen, &value)?;
        step1(x, value, move |g| match &beyond {
            Some(beyond) => Ok(beyond.where_cond(&g.zeros_like()?, g)?),
            None => Ok(g.clone()),
        })
    }

    /// Where `x` is beyond what a fixed range holds, and what it became does not follow it; `None`: nowhere.
    fn beyond(&self, x: &Tensor, value: &Tensor) -> Result<Option<Tensor>> {
        let Some(p) = &self.params else { return Ok(None) };
        let (lo, hi) = self.spec.grid.limits();
        let ends: Vec<(f32, f32)> = p
            .scale
            .iter()
            .zip(&p.zero)
            .map(|(s, z)| {
                let (a, b) = (self.spec.grid.decode(lo, *s, *z), self.spec.grid.decode(hi, *s, *z));
                (a.min(b), a.max(b))
            })
            .collect();
        let cols = *x.dims().last().unwrap_or(&1);
        let layout = self.spec.granularity.layout(1, cols);
        let read = |t: &Tensor| with_slice::<f32, _>(&t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?, |v| Ok(v.to_vec()));
        let (x_, value) = (read(x)?, read(value)?);
        let beyond = x_.iter().zip(&value).enumerate().map(|(i, (x, v))| {
            let (least, most) = ends[layout.tile(0, i % cols)];
            u8::from((v <= &least && x < v) || (v >= &most && x > v))
        });
        Ok(Some(Tensor::from_vec(beyond.collect::<Vec<u8>>(), x.shape().clone(), &Device::Cpu)?.to_device(x.device())?))
    }

    fn rounded(&self, x: &Tensor) -> Result<Tensor> {
        let cols = *x.dims().last().unwrap_or(&1);
        let host = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let mut values = with_slice::<f32, _>(&host, |v| Ok(v.to_vec()))?;
        let two_level;
        let ranges = match &self.params {
            Some(p) => Ranges::Fixed { scale: &p.scale, zero: &p.zero },
            None if self.spec.scale == ScaleForm::TwoLevel => {
                let (lo, hi, _) = vectorize(Extremes(&values));
                two_level = ScaleRule::of(&self.spec, lo.abs().max(hi.abs()));
                Ranges::Dynamic(&two_level)
            }
            None => Ranges::Dynamic(&self.rule),
        };
        let expected = self.params.as_ref().map_or(0, |p| p.scale.len());
        if self.params.is_some() && self.spec.granularity.layout(1, cols).grid().1 != expected {
            return Err(Error::internal(format!("activations at `{}` have {cols} channels, and {expected} scales", self.place)));
        }
        fake_quantize(&mut values, cols, &self.spec.granularity, &self.spec.grid, ranges).map_err(|(row, column)| {
            Error::numeric("numeric::not-finite", format!("activations at `{}` are not finite: row {row}, channel {column}", self.place))
                .hint("the weights before this place are damaged, or a scheme before it is too coarse")
        })?;
        Ok(Tensor::from_vec(values, x.shape().clone(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?)
    }
}

/// Everything rounded in a model, by block (`None`: around the blocks) and port. Several schemes of one port apply in order.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    places: BTreeMap<Option<u32>, Arc<Ports>>,
}

type Ports = BTreeMap<Port, Vec<ActivationQuant>>;

impl Activations {
    /// Puts roundings in their places.
    pub fn new(all: impl IntoIterator<Item = ActivationQuant>) -> Self {
        let mut places: BTreeMap<Option<u32>, Ports> = BTreeMap::new();
        for a in all {
            places.entry(a.place.block).or_default().entry(a.place.port).or_default().push(a);
        }
        Self { places: places.into_iter().map(|(b, p)| (b, Arc::new(p))).collect() }
    }

    /// Whether nothing is rounded.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Every rounding.
    pub fn iter(&self) -> impl Iterator<Item = &ActivationQuant> {
        self.places.values().flat_map(|p| p.values().flatten())
    }

    /// `block` with the roundings of block `b`.
    pub fn in_block(&self, b: u32, block: Box<dyn Block>) -> Box<dyn Block> {
        match self.places.get(&Some(b)) {
            Some(ports) => Box::new(Quantized { inner: block, ports: Arc::clone(ports) }),
            None => block,
        }
    }

    /// `edges` with the roundings around the blocks.
    pub fn at_edges(&self, edges: Box<dyn Edges>) -> Box<dyn Edges> {
        match self.places.get(&None) {
            Some(ports) => Box::new(Quantized { inner: edges, ports: Arc::clone(ports) }),
            None => edges,
        }
    }
}

struct Quantized<T: ?Sized> {
    ports: Arc<Ports>,
    inner: Box<T>,
}

impl Block for Quantized<dyn Block> {
    fn run(&self, span: Span, flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.run(span, flow, &mut Rounding { ports: &self.ports, then: tap })
    }
}

impl Edges for Quantized<dyn Edges> {
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow> {
        self.inner.embed(ids, position, &mut Rounding { ports: &self.ports, then: tap })
    }

    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor> {
        self.inner.finish(flow, &mut Rounding { ports: &self.ports, then: tap })
    }

    fn head_rows(&self, range: std::ops::Range<usize>) -> Result<Tensor> {
        self.inner.head_rows(range)
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }
}

/// Rounds, then shows what was rounded.
struct Rounding<'a> {
    ports: &'a Ports,
    then: &'a mut dyn Tap,
}

impl Tap for Rounding<'_> {
    fn wants(&self, port: Port) -> bool {
        self.ports.contains_key(&port) || self.then.wants(port)
    }

    fn at(&mut self, port: Port, mut x: Tensor) -> Result<Tensor> {
        for a in self.ports.get(&port).into_iter().flatten() {
            x = a.apply(&x)?;
        }
        if self.then.wants(port) { self.then.at(port, x) } else { Ok(x) }
    }
}
