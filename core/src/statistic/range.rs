//! Ranges of activations, window by window, for static schemes.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::model::Tap;
use crate::numeric::with_slice;
use crate::observer::{Observer, ScaleRule};
use crate::scheme::{QParams, QuantSpec, Reducer, TileLayout};
use crate::topology::{Place, Port};

/// A place whose range is wanted.
pub struct RangeSite<'a> {
    /// The place.
    pub place: Place,
    /// Its scheme.
    pub spec: &'a QuantSpec,
    /// Chooses ranges.
    pub observer: &'a dyn Observer,
}

/// The ranges of some places of one block, being collected. Shared by all threads of a sweep.
pub struct RangeCollector<'a> {
    sites: Vec<(RangeSite<'a>, Mutex<BTreeMap<usize, Window>>)>,
}

/// What one window leaves behind.
enum Window {
    /// A range for each tile column.
    Ranges(Vec<(f32, f32)>),
    /// All values and their number of columns, where they are to be taken together.
    Values(Vec<f32>, usize),
}

impl<'a> RangeCollector<'a> {
    /// A collector for these places.
    pub fn new(sites: impl IntoIterator<Item = RangeSite<'a>>) -> Self {
        Self { sites: sites.into_iter().map(|s| (s, Mutex::default())).collect() }
    }

    /// The last port a sweep has to reach, or `None` if nothing is collected.
    pub fn last_port(&self) -> Option<Port> {
        self.sites.iter().map(|(s, _)| s.place.port).max()
    }

    /// The tap for window `index`.
    pub fn window(&self, index: usize) -> impl Tap + '_ {
        WindowTap { collector: self, index }
    }

    /// The parameters of each place, in the order given, from `n` windows.
    ///
    /// # Errors
    /// If a window is missing.
    pub fn finish(self, n: usize) -> Result<Vec<(Place, QParams)>> {
        self.sites.into_iter().map(|(site, windows)| finish_site(&site, windows, n)).collect()
    }
}

fn finish_site(site: &RangeSite<'_>, windows: Mutex<BTreeMap<usize, Window>>, n: usize) -> Result<(Place, QParams)> {
    let windows = windows.into_inner().map_err(|_| Error::internal("a thread panicked while collecting ranges"))?;
    if windows.len() != n || n == 0 {
        return Err(Error::internal(format!("ranges of `{}` come from {} windows of {n}", site.place, windows.len())));
    }
    let mut each: Vec<Vec<(f32, f32)>> = Vec::new();
    let (mut values, mut cols) = (Vec::new(), 0);
    for window in windows.into_values() {
        match window {
            Window::Ranges(r) => each.push(r),
            Window::Values(v, c) => {
                cols = c;
                values.extend(v);
            }
        }
    }
    if cols > 0 {
        each.push(ranges(site, &values, cols));
    }
    let tiles = each[0].len();
    let reduced: Vec<(f32, f32)> = (0..tiles).map(|t| reduce(site.spec.reduce, each.iter().map(|w| w[t]))).collect();
    // Scales of two levels share a factor, which is that of the largest magnitude.
    let amax = reduced.iter().fold(0.0f32, |a, (lo, hi)| a.max(lo.abs()).max(hi.abs()));
    let rule = ScaleRule::of(site.spec, amax);
    let (scale, zero): (Vec<f32>, Vec<f32>) = reduced.into_iter().map(|(lo, hi)| rule.params(lo, hi)).unzip();
    // One row of tiles that hold every row there will be.
    let layout = TileLayout { rows: 1, cols: tiles, tile_rows: 1, tile_cols: 1 };
    Ok((site.place, QParams { layout, scale, zero, global: rule.global() }))
}

/// Ranges of windows, in order, as one.
fn reduce(reducer: Reducer, windows: impl ExactSizeIterator<Item = (f32, f32)>) -> (f32, f32) {
    let n = windows.len() as f64;
    match reducer {
        Reducer::Mean => {
            let (lo, hi) = windows.fold((0.0, 0.0), |(lo, hi), (l, h)| (lo + f64::from(l), hi + f64::from(h)));
            ((lo / n) as f32, (hi / n) as f32)
        }
        Reducer::Max | Reducer::Concat => windows.fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), (l, h)| (lo.min(l), hi.max(h))),
        Reducer::Ema(c) => {
            let mut average = None;
            for (l, h) in windows {
                average = Some(average.map_or((l, h), |(lo, hi): (f32, f32)| (lo + c * (l - lo), hi + c * (h - hi))));
            }
            average.unwrap_or((0.0, 0.0))
        }
    }
}

fn ranges(site: &RangeSite<'_>, x: &[f32], cols: usize) -> Vec<(f32, f32)> {
    let rule = ScaleRule::of(site.spec, 0.0);
    let layout = site.spec.granularity.layout(x.len() / cols, cols);
    let mut values = Vec::new();
    (0..layout.grid().1)
        .map(|tile| {
            let span = tile * layout.tile_cols..cols.min((tile + 1) * layout.tile_cols);
            if span.len() == cols {
                return site.observer.range(x, &rule);
            }
            values.clear();
            x.chunks(cols).for_each(|row| values.extend_from_slice(&row[span.clone()]));
            site.observer.range(&values, &rule)
        })
        .collect()
}

struct WindowTap<'a> {
    collector: &'a RangeCollector<'a>,
    index: usize,
}

impl Tap for WindowTap<'_> {
    fn wants(&self, port: Port) -> bool {
        self.collector.sites.iter().any(|(s, _)| s.place.port == port)
    }

    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor> {
        let cols = *x.dims().last().unwrap_or(&1);
        let host = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        with_slice::<f32, _>(&host, |values| {
            if values.iter().any(|v| !v.is_finite()) {
                return Err(Error::numeric("numeric::not-finite", format!("activations at `{port}` are not finite"))
                    .hint("the weights before this place are damaged"));
            }
            for (site, windows) in self.collector.sites.iter().filter(|(s, _)| s.place.port == port) {
                let window = match site.spec.reduce {
                    Reducer::Concat => Window::Values(values.to_vec(), cols),
                    _ => Window::Ranges(ranges(site, values, cols)),
                };
                windows.lock().map_err(|_| Error::internal("a thread panicked while collecting ranges"))?.insert(self.index, window);
            }
            Ok(())
        })?;
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_reduced_in_their_order() {
        let windows = [(-1.0, 1.0), (-3.0, 2.0), (-2.0, 6.0)];
        let of = |r| reduce(r, windows.into_iter());
        assert_eq!(of(Reducer::Mean), (-2.0, 3.0));
        assert_eq!(of(Reducer::Max), (-3.0, 6.0));
        // −1 → −1 + ½(−3 + 1) = −2 → −2; 1 → 1.5 → 3.75
        assert_eq!(of(Reducer::Ema(0.5)), (-2.0, 3.75));
    }
}
