//! Statistics as core has them, from those that cross the border.
//!
//! Matrices are copied once: layers that read the same input come with the same id, and share the copy and what was computed from it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use qfw_abi::plugin::{Failure, Stat as Given, StatKind as GivenKind, Status, Stream as GivenStream};
use qfw_core::statistic::{CrossGram, Gram, Stat, StatKey, StatKind, Stats, Stream};
use qfw_core::topology::Port;

/// The matrices that were used last.
#[derive(Default)]
pub(crate) struct Matrices(Mutex<VecDeque<(u64, Stat)>>);

/// A layer has two at most, and two layers of different inputs may be at work.
const KEPT: usize = 4;

pub(crate) fn stream_of(stream: GivenStream) -> Stream {
    match stream {
        GivenStream::Reference => Stream::Reference,
        GivenStream::Quantized => Stream::Quantized,
        GivenStream::Rounded => Stream::Rounded,
    }
}

fn kind_of(kind: GivenKind) -> StatKind {
    match kind {
        GivenKind::Gram => StatKind::Gram,
        GivenKind::CrossGram => StatKind::CrossGram,
        GivenKind::Mean => StatKind::Mean,
        GivenKind::AbsMean => StatKind::AbsMean,
        GivenKind::Least => StatKind::Least,
        GivenKind::Greatest => StatKind::Greatest,
        GivenKind::RoundedMean => StatKind::RoundedMean,
    }
}

impl Matrices {
    /// The statistics of a port.
    pub(crate) fn stats<'a>(&self, given: impl Iterator<Item = Given<'a>>, port: Port, channels: usize) -> Result<Stats, Failure> {
        let mut stats = Stats::default();
        for given in given {
            let Some(kind) = given.kind() else { continue };
            let stat = match kind {
                GivenKind::Gram | GivenKind::CrossGram => self.matrix(&given, kind, channels)?,
                _ => Stat::Channels(Arc::from(given.channels())),
            };
            stats.insert(StatKey { port, kind: kind_of(kind), stream: stream_of(given.stream()) }, stat);
        }
        Ok(stats)
    }

    fn matrix(&self, given: &Given<'_>, kind: GivenKind, n: usize) -> Result<Stat, Failure> {
        let broken = |what: &str| Failure::new(Status::Internal, what);
        let mut kept = self.0.lock().map_err(|_| broken("an earlier call broke"))?;
        if let Some((_, stat)) = kept.iter().find(|(id, _)| *id == given.id()) {
            return Ok(stat.clone());
        }
        let values = given.matrix().to_vec();
        if values.len() != n * n {
            return Err(broken(&format!("a statistic has {} numbers for {n} channels", values.len())));
        }
        let stat = match kind {
            GivenKind::Gram => Stat::Gram(Arc::new(Gram::new(n, values, given.tokens()))),
            _ => Stat::CrossGram(Arc::new(CrossGram::new(n, values, given.tokens()))),
        };
        kept.push_back((given.id(), stat.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(stat)
    }
}
