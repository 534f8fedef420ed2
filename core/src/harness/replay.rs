//! A module of a block, run again and again on what it reads: what [`Replay`] is in a run.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{Device, Tensor};

use super::run::{Control, Run};
use super::stream::Stream;
use super::sweep::for_each_window;
use crate::algorithm::Replay;
use crate::error::{Error, Result};
use crate::model::{Flow, MapWeights, Nothing, Span, WeightSource};
use crate::numeric::with_slice;
use crate::topology::{Part, Place, Port, PortName, Region, SiteId, Space};

/// A module, with what it read and what it put out.
pub(super) struct Module<'a> {
    run: &'a Run<'a>,
    block: u32,
    weights: &'a MapWeights,
    control: &'a Control<'a>,
    span: Span,
    inputs: Stream,
    outputs: Stream,
}

impl<'a> Module<'a> {
    /// The module that reads `region`, if that is more than one layer: a layer alone needs no replay, its Gram matrix says as much.
    pub(super) fn of(
        run: &'a Run<'a>,
        block: u32,
        region: &Region,
        weights: &'a MapWeights,
        stream: &Stream,
        dir: &Path,
        control: &'a Control<'a>,
    ) -> Result<Option<Self>> {
        let (from, to) = match region.space {
            Space::AttnIn => (PortName::AttnIn, PortName::OOut),
            Space::MlpIn => (PortName::MlpIn, PortName::DownOut),
            _ => return Ok(None),
        };
        // What passes a place is rotated or multiplied there: a run that started at such a place would do that once more.
        let place = Place { block: Some(block), port: from.into() };
        let changed = run.plan().online().iter().any(|o| o.place() == place);
        let from: Port = if changed { PortName::BlockIn.into() } else { from.into() };
        let make = |name: &str| run.empty_stream(&dir.join(format!("replay-{name}.f32")));
        let module = Self { run, block, weights, control, span: Span { from, to: to.into() }, inputs: make("in")?, outputs: make("out")? };
        let model = run.model().block(block, weights)?;
        for_each_window(stream.windows(), control, |i| {
            let mut flow = model.run(Span::until(from), Flow::new(stream.get(i, run.device())?), &mut Nothing)?;
            module.inputs.set(i, &flow.x)?;
            flow.residual = None;
            module.outputs.set(i, &model.run(module.span, Flow::new(flow.x), &mut Nothing)?.x)
        })?;
        Ok(Some(module))
    }
}

impl Replay for Module<'_> {
    fn windows(&self) -> usize {
        self.inputs.windows()
    }

    fn errors(&self, weights: Vec<(SiteId, Vec<f32>)>, windows: Range<usize>) -> Result<Vec<f64>> {
        let mut changed = self.weights.clone();
        for (site, values) in weights {
            let old = self.weights.get(site, Part::Weight)?;
            if old.elem_count() != values.len() {
                return Err(Error::internal(format!("a weight of {} numbers for `{site}`, which has {}", values.len(), old.elem_count())));
            }
            let new = Tensor::from_vec(values, old.dims(), &Device::Cpu)?.to_dtype(old.dtype())?.to_device(old.device())?;
            changed.insert(site, Part::Weight, new);
        }
        let (model, device) = (self.run.model().block(self.block, &changed)?, self.run.device());
        let errors: Vec<Mutex<f64>> = windows.clone().map(|_| Mutex::new(0.0)).collect();
        for_each_window(errors.len(), self.control, |nth| {
            let i = windows.start + nth;
            let out = model.run(self.span, Flow::new(self.inputs.get(i, device)?), &mut Nothing)?.x;
            let error = with_slice::<f32, _>(&out.to_device(&Device::Cpu)?, |out| {
                self.outputs.read(i, |was| out.iter().zip(was).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>())
            })?;
            *errors[nth].lock().map_err(|_| Error::internal("a thread panicked in a replay"))? = error;
            Ok(())
        })?;
        Ok(errors.into_iter().map(|e| e.into_inner().unwrap_or(f64::NAN)).collect())
    }
}
