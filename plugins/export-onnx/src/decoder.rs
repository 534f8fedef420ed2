//! A whole model as a graph: what it knows while it grows, and the places at which activations change.
//!
//! Inputs and outputs have the names that Optimum and onnxruntime-genai use. Everything is computed in f32, whatever weights are
//! stored in.

mod attention;
mod blocks;
mod edges;
mod linear;

use std::collections::{BTreeMap, BTreeSet};

use qfw_core::checkpoint::StoredDtype;
use qfw_core::checkpoint::native::NativeReader;
use qfw_core::model::{Dims, model_type};
use qfw_core::registry::Registry;
use qfw_core::topology::{OnlineStep, Part, Place, Port, PortName, SiteId, Topology};
use qfw_core::{Error, Result};
use serde_json::Value as Json;

use crate::accept;
use crate::data::Origin;
use crate::form::Form;
use crate::graph::{Graph, Value};
use crate::message::{Attribute, Kind};
use crate::rounding::{Rounding, rounding};

/// What the configuration says of a model that can be a graph.
pub(crate) struct Model {
    pub dims: Dims,
    pub topology: Topology,
}

impl Model {
    /// The model that `config` describes, which does `online` to its activations.
    ///
    /// # Errors
    /// If there is no graph of such models here.
    pub(crate) fn of(config: &Json, online: &[OnlineStep], has_tensor: &dyn Fn(&str) -> bool) -> Result<Self> {
        let family = model_type(config)?;
        accept::family(family)?;
        let registry = Registry::builtin()?;
        let architecture = registry.architecture(family)?;
        let dims = architecture.parse(config, has_tensor)?;
        let mut topology = architecture.topology(&dims);
        topology.doing(online, dims.head_dim)?;
        if dims.rope.is_some() && !dims.head_dim.is_multiple_of(2) {
            let what = format!("rotary positions turn pairs of channels, and heads have {} here", dims.head_dim);
            return Err(Error::plan("plan::container", what).hint("use `--format qfw`"));
        }
        Ok(Self { dims, topology })
    }
}

/// What passes a place.
struct Passed {
    /// Rotated and multiplied, and not yet rounded: what branches read.
    exact: Value,
    /// Rounded as well.
    rounded: Value,
}

/// The graph of a model, in the making.
struct Decoder<'a> {
    native: &'a NativeReader,
    form: Form,
    model: Model,
    graph: Graph,
    /// Kept tensors as f32, by name.
    floats: BTreeMap<String, Value>,
    /// What branches with a shared `A` have read, by the module of `A`.
    read: BTreeMap<String, Value>,
    /// Places and sites of the plan that have been met.
    met: BTreeSet<String>,
}

/// The graph of the model that a native checkpoint holds.
///
/// # Errors
/// If it has parts that a graph has no place for.
pub(crate) fn graph(native: &NativeReader, form: Form) -> Result<Graph> {
    let names = native.plain().into_iter().map(|i| i.name.clone()).chain(native.sites.iter().map(|s| format!("{}.weight", s.module)));
    let names: BTreeSet<String> = names.collect();
    let model = Model::of(&native.config, &native.online, &|name| names.contains(name))?;
    let (graph, floats, read, met) = (Graph::default(), BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut decoder = Decoder { native, form, model, graph, floats, read, met };
    decoder.build()?;
    decoder.all_met()?;
    Ok(decoder.graph)
}

impl Decoder<'_> {
    /// Nothing of the plan is left out.
    fn all_met(&self) -> Result<()> {
        let native = self.native;
        let sites = native.sites.iter().map(|s| s.site.clone()).chain(native.branches.iter().map(|b| format!("branch {}", b.site)));
        let places = native.activations.iter().map(|a| a.place.to_string());
        let online = native.online.iter().map(met);
        match sites.chain(places).chain(online).find(|name| !self.met.contains(name)) {
            Some(name) => Err(Error::internal(format!("`{name}` is part of the plan, and not of the graph"))),
            None => Ok(()),
        }
    }

    /// The name of the tensor of a site.
    fn tensor(&self, site: SiteId, part: Part) -> Result<String> {
        let param = self.model.topology.param(site, part);
        Ok(param.ok_or_else(|| Error::internal(format!("`{site}` has no such tensor")))?.tensor.clone())
    }

    /// A kept tensor as it is stored.
    fn plain(&mut self, name: &str) -> Result<(Value, Kind)> {
        let info = self.native.plain_source(name)?.require(name)?.clone();
        let kind = match &info.dtype {
            StoredDtype::F32 => Kind::Float,
            StoredDtype::F16 => Kind::Float16,
            StoredDtype::BF16 => Kind::Bfloat16,
            StoredDtype::F64 => Kind::Double,
            other => {
                let what = format!("tensor `{name}` is of type {}, which is no float", other.name());
                return Err(Error::input("checkpoint::dtype", what).hint("give the model in f32, f16 or bf16"));
            }
        };
        Ok((self.graph.stored(name, kind, &info.shape, Origin::Plain), kind))
    }

    /// A kept tensor as f32.
    fn float(&mut self, name: &str) -> Result<Value> {
        if let Some(value) = self.floats.get(name) {
            return Ok(value.clone());
        }
        let (stored, kind) = self.plain(name)?;
        let value = self.in_f32(name, &stored, kind);
        self.floats.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    fn in_f32(&mut self, at: &str, value: &str, kind: Kind) -> Value {
        match kind {
            Kind::Float => value.to_owned(),
            _ => self.graph.op(at, "Cast", &[value], vec![Attribute::int("to", Kind::Float as i64)]),
        }
    }

    /// A table of f32 that is made for the graph.
    fn made(&mut self, name: &str, dims: &[usize], origin: Origin) -> Value {
        self.graph.stored(name, Kind::Float, dims, origin)
    }

    /// What passes a place of the model, `[batch, sequence, channels]`, rotated, multiplied and rounded as the plan says.
    fn pass(&mut self, block: Option<u32>, port: PortName, x: Value) -> Result<Passed> {
        let place = Place { block, port: Port::of(port) };
        let turned = self.turned(place, x)?;
        let exact = self.multiplied(place, turned)?;
        let mut rounded = exact.clone();
        for a in self.native.activations.iter().filter(|a| a.place == place) {
            let how = rounding(self.form, a)?;
            let name = place.to_string();
            rounded = match how {
                Rounding::Dynamic(dynamic) => dynamic.nodes(&mut self.graph, &name, &rounded),
                Rounding::Fixed(fixed) => {
                    let params = self.native.activation_params(a)?;
                    let params = params.ok_or_else(|| Error::internal(format!("`{place}` has no fixed scale")))?;
                    fixed.nodes(&mut self.graph, &name, &format!("{place}.{}", a.part), &rounded, &params)
                }
            };
            self.met.insert(name);
        }
        Ok(Passed { exact, rounded })
    }

    /// The same where nothing reads it before it is rounded.
    fn at(&mut self, block: Option<u32>, port: PortName, x: Value) -> Result<Value> {
        Ok(self.pass(block, port, x)?.rounded)
    }

    /// `x·R` for every stretch of the channels, where the place is rotated.
    fn turned(&mut self, place: Place, x: Value) -> Result<Value> {
        let mut rotations = self.native.online.iter().filter_map(OnlineStep::rotation);
        let Some(online) = rotations.clone().find(|r| r.place == place) else { return Ok(x) };
        let (n, at) = (online.rotation.size, place.to_string());
        // Blocks mostly share theirs.
        let first = rotations.position(|r| r.rotation == online.rotation).unwrap_or_default();
        let matrix = self.graph.stored(&format!("rotation.{first}"), Kind::Float, &[n, n], Origin::Rotation(online.rotation.clone()));
        let mut x = x;
        if let Some(from) = online.padded_from {
            let (ends, axis) = (self.graph.ints(&[0, (n - from) as i64]), self.graph.ints(&[-1]));
            let zero = self.graph.float(0.0);
            x = self.graph.op(&at, "Pad", &[&x, &ends, &zero, &axis], Vec::new());
        }
        let (split, joined) = (self.graph.ints(&[0, 0, -1, n as i64]), self.graph.ints(&[0, 0, -1]));
        let stretches = self.graph.op(&at, "Reshape", &[&x, &split], Vec::new());
        let turned = self.graph.op(&at, "MatMul", &[&stretches, &matrix], Vec::new());
        self.met.insert(met(&OnlineStep::Rotation(online.clone())));
        Ok(self.graph.op(&at, "Reshape", &[&turned, &joined], Vec::new()))
    }

    /// `x⊙m`, where the place has a multiplier.
    fn multiplied(&mut self, place: Place, x: Value) -> Result<Value> {
        let step = OnlineStep::Multiplier(place);
        if !self.native.online.contains(&step) {
            return Ok(x);
        }
        let first = self.model.topology.readers(place).first().map(|l| l.site);
        let name = self.tensor(first.ok_or_else(|| Error::internal(format!("nothing reads `{place}`")))?, Part::Multiplier)?;
        let factors = self.float(&name)?;
        self.met.insert(met(&step));
        Ok(self.graph.op(&place.to_string(), "Mul", &[&x, &factors], Vec::new()))
    }
}

/// What a step is called among what has been met: a place may be rotated, multiplied and rounded.
fn met(step: &OnlineStep) -> String {
    format!("{} {}", if step.rotation().is_some() { "rotated" } else { "multiplied" }, step.place())
}
