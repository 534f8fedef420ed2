//! The collecting sweep: as few forward passes as the statistics of a step need.
//!
//! Each stream that something is wanted of runs once, as far as the last port wanted. Statistics of two streams together take both windows
//! by window, first the reference, whose tensors are kept for as long as the window lasts; what is wanted of the reference alone comes
//! from the same pass.

use std::collections::BTreeSet;

use super::run::Control;
use super::sweep::for_each_window;
use crate::error::Result;
use crate::model::{ActivationQuant, Both, Nothing, Tap};
use crate::numeric::Bf16Unit;
use crate::statistic::{Collector, Keep, RangeCollector, StatKey, Stats, Stream};
use crate::topology::Port;

/// Runs a window of a stream as far as a port.
pub(super) type Forward<'a> = Box<dyn Fn(usize, Port, &mut dyn Tap) -> Result<()> + Sync + 'a>;

/// What a sweep is to find out.
pub(super) struct Wanted<'a> {
    /// Statistics.
    pub(super) keys: BTreeSet<StatKey>,
    /// Ranges, and the stream they are taken on.
    pub(super) ranges: Option<(Stream, &'a RangeCollector<'a>)>,
    /// Whether the activations of this part of the model are rounded: if not, nothing sets the rounded stream apart.
    pub(super) rounds: bool,
    /// How activations are rounded of which rounded means are taken.
    pub(super) rounding: Vec<&'a ActivationQuant>,
    /// What forms Gram matrices of values rounded to bf16, where they are.
    pub(super) bf16: Option<Bf16Unit>,
}

impl<'a> Wanted<'a> {
    fn collector(&self, stream: Stream) -> Collector {
        let of = |key: &StatKey| if key.stream == Stream::Rounded && !self.rounds { Stream::Quantized } else { key.stream };
        Collector::new(stream, self.keys.iter().filter(|k| of(k) == stream).map(|k| StatKey { stream, ..*k }), &self.rounding, self.bf16)
    }

    fn ranges(&self, stream: Stream) -> Option<&'a RangeCollector<'a>> {
        self.ranges.filter(|(of, _)| *of == stream).map(|(_, ranges)| ranges)
    }
}

/// Collects from `windows` windows; `open` makes the forward pass of a stream.
pub(super) fn collect<'f>(
    wanted: &Wanted<'_>,
    windows: usize,
    open: impl Fn(Stream) -> Result<Forward<'f>>,
    control: &Control<'_>,
) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut reference = Some(wanted.collector(Stream::Reference));
    for stream in [Stream::Quantized, Stream::Rounded, Stream::Reference] {
        let collector = if stream == Stream::Reference { reference.take() } else { Some(wanted.collector(stream)) };
        let Some(collector) = collector else { continue };
        let ranges = wanted.ranges(stream);
        let Some(last) = collector.last_port().max(ranges.and_then(RangeCollector::last_port)) else { continue };
        let (run, paired) = (open(stream)?, collector.paired_ports());
        let observed = |i: usize, kept: Option<&Keep>| match ranges {
            Some(ranges) => run(i, last, &mut Both(&mut collector.window(i, kept), &mut ranges.window(i))),
            None => run(i, last, &mut collector.window(i, kept)),
        };
        match paired.last() {
            None => for_each_window(windows, control, |i| observed(i, None))?,
            Some(end) => {
                let along = reference.take();
                let first = open(Stream::Reference)?;
                let end = along.as_ref().and_then(Collector::last_port).max(Some(*end)).unwrap_or(*end);
                for_each_window(windows, control, |i| {
                    let mut keep = Keep::new(paired.clone());
                    match &along {
                        Some(along) => first(i, end, &mut Both(&mut along.window(i, None), &mut keep))?,
                        None => first(i, end, &mut Both(&mut Nothing, &mut keep))?,
                    }
                    observed(i, Some(&keep))
                })?;
                if let Some(along) = along {
                    stats.extend(along.finish(windows)?);
                }
            }
        }
        stats.extend(collector.finish(windows)?);
    }
    if !wanted.rounds {
        for key in wanted.keys.iter().filter(|k| k.stream == Stream::Rounded) {
            stats.share(StatKey { stream: Stream::Quantized, ..*key }, *key);
        }
    }
    Ok(stats)
}
