//! Learning the weights of a block from what the block puts out.
//!
//! ```text
//! loss = mean over tokens and channels of (block(x; Ŵ) − y)²      x: inputs from the blocks rounded before, y: what the original block puts out
//! ```
//!
//! The harness runs the block and its gradients ([`Training`]), a method says how `Ŵ` depends on what it learns ([`Learner`]), and
//! [`minimize`] is the loop of all of them: batches drawn by seed, and the best found kept.

use super::{Rounded, SiteContext};
use crate::error::Result;
use crate::numeric::uniform_below;

/// A block on the calibration data, with gradients.
pub trait Training: Sync {
    /// Calibration windows.
    fn windows(&self) -> usize;

    /// The loss over `windows` with `weights`, one for each site, row-major.
    ///
    /// # Errors
    /// If a weight has another size, or the run is interrupted.
    fn loss(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<f64>;

    /// The loss over `windows`, and the loss over `some` of them.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn losses(&self, windows: &[usize], some: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, f64)> {
        Ok((self.loss(windows, weights.clone())?, self.loss(some, weights)?))
    }

    /// The loss, and its gradients with respect to the weights.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)>;
}

/// What is learned.
pub trait Learner: Clone {
    /// The weights it stands for now, one for each site, row-major.
    fn weights(&self) -> Vec<Vec<f32>>;

    /// The weights it would settle for: values of codes.
    fn settled(&self) -> Vec<Vec<f32>> {
        self.weights()
    }

    /// One step against the gradients of the loss with respect to [`Self::weights`], when `done` of all steps are behind it, `0 ≤ done < 1`.
    fn step(&mut self, gradients: &[Vec<f32>], done: f64);
}

/// Which windows each step sees.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// Steps.
    pub steps: usize,
    /// Windows of a step.
    pub size: usize,
    /// What the draws depend on, besides the step.
    pub key: [u64; 2],
}

impl Batches {
    /// The windows of a step, drawn without replacement, in increasing order.
    fn draw(&self, step: usize, windows: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..windows).collect();
        let size = self.size.clamp(1, windows.max(1)).min(windows);
        for i in 0..size {
            let key = [self.key[0], self.key[1], step as u64, i as u64];
            all.swap(i, i + uniform_below(&key, (windows - i) as u64) as usize);
        }
        all.truncate(size);
        all.sort_unstable();
        all
    }
}

/// How learning went.
#[derive(Clone, Debug, PartialEq)]
pub struct Learning {
    /// The loss over all windows at first.
    pub initial: f64,
    /// The loss over all windows of what was kept.
    pub reached: f64,
    /// Steps behind what was kept.
    pub steps: usize,
    /// The loss of each batch, before its step.
    pub curve: Vec<f64>,
}

/// A learner whose state can be stored between steps, where these take long.
pub trait Resumable: Learner {
    /// All that steps change, as numbers.
    fn state(&self) -> Vec<&[f64]>;

    /// This learner in the state that one like it was in behind so many steps.
    ///
    /// # Errors
    /// If that is not the state of such a learner.
    fn restored(&self, state: Vec<Vec<f64>>, steps: usize) -> Result<Self>;
}

/// Learning between two steps, as numbers alone: `Vec<f64>`, or slices of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Halfway<N> {
    /// The loss over all windows at first.
    pub initial: f64,
    /// The loss of each batch so far, before its step.
    pub curve: Vec<f64>,
    /// The learner.
    pub now: Vec<N>,
    /// The least loss on a batch of its own, behind how many steps, and the learner there.
    pub best: Option<(f64, usize, Vec<N>)>,
}

/// Where learning is stored after each step, so that it goes on from there when a run does.
pub trait Store {
    /// What was stored, if anything was.
    ///
    /// # Errors
    /// If it cannot be read.
    fn load(&self) -> Result<Option<Halfway<Vec<f64>>>>;

    /// Stores this in the place of what was stored before.
    ///
    /// # Errors
    /// If it cannot be written.
    fn save(&self, halfway: &Halfway<&[f64]>) -> Result<()>;
}

/// Learning between two steps.
struct Underway<L> {
    initial: f64,
    curve: Vec<f64>,
    now: L,
    best: Option<(f64, usize, L)>,
}

/// Takes `batches.steps` steps, and leaves in `learner` what has the least loss over all windows: the start, the last state, or the one with
/// the least loss on its own batch, unless the last one loses no more even there. So it never ends worse than it began.
///
/// # Errors
/// What running the block returns.
pub fn minimize<L: Learner>(training: &dyn Training, learner: &mut L, batches: &Batches) -> Result<Learning> {
    descend(training, learner, batches, None, &mut |_| Ok(()))
}

/// As [`minimize`], from where `store` says that it was, to the same result to the bit.
///
/// # Errors
/// As [`minimize`], or if what is stored cannot be read, written, or is of another learner.
pub fn minimize_stored<L: Resumable>(training: &dyn Training, learner: &mut L, batches: &Batches, store: &dyn Store) -> Result<Learning> {
    let begun = match store.load()? {
        Some(Halfway { initial, curve, now, best }) => {
            let best =
                best.map(|(loss, steps, state)| Ok::<_, crate::Error>((loss, steps, learner.restored(state, steps)?))).transpose()?;
            let now = learner.restored(now, curve.len())?;
            Some(Underway { initial, curve, now, best })
        }
        None => None,
    };
    descend(training, learner, batches, begun, &mut |Underway { initial, curve, now, best }| {
        let best = best.as_ref().map(|(loss, step, learner)| (*loss, *step, learner.state()));
        store.save(&Halfway { initial: *initial, curve: curve.clone(), now: now.state(), best })
    })
}

fn descend<L: Learner>(
    training: &dyn Training,
    learner: &mut L,
    batches: &Batches,
    begun: Option<Underway<L>>,
    stepped: &mut dyn FnMut(&Underway<L>) -> Result<()>,
) -> Result<Learning> {
    let all: Vec<usize> = (0..training.windows()).collect();
    let mut underway = match begun {
        Some(underway) => underway,
        None => {
            let initial = training.loss(&all, learner.settled())?;
            Underway { initial, curve: Vec::new(), now: learner.clone(), best: None }
        }
    };
    for step in underway.curve.len()..batches.steps {
        let (loss, gradients) = training.gradients(&batches.draw(step, all.len()), underway.now.weights())?;
        if step > 0 && underway.best.as_ref().is_none_or(|(least, ..)| loss < *least) {
            underway.best = Some((loss, step, underway.now.clone()));
        }
        underway.curve.push(loss);
        underway.now.step(&gradients, step as f64 / batches.steps as f64);
        stepped(&underway)?;
    }
    let Underway { initial, curve, now, best } = underway;
    let mut kept = Learning { initial, reached: initial, steps: 0, curve };
    if batches.steps == 0 {
        return Ok(kept);
    }
    let mut keep = |loss: f64, steps: usize, candidate: L| {
        let better = loss < kept.reached;
        if better {
            (kept.reached, kept.steps, *learner) = (loss, steps, candidate);
        }
        better
    };
    let Some((least, steps, best)) = best else {
        keep(training.loss(&all, now.settled())?, batches.steps, now);
        return Ok(kept);
    };
    let (loss, there) = training.losses(&all, &batches.draw(steps, all.len()), now.settled())?;
    if !keep(loss, batches.steps, now) || there > least {
        keep(training.loss(&all, best.settled())?, steps, best);
    }
    Ok(kept)
}

/// The sites of a block under work.
pub struct BlockContext<'a> {
    /// The sites, in the order in which weights and gradients come.
    pub sites: &'a [SiteContext<'a>],
    /// The block.
    pub training: &'a dyn Training,
    /// Its number.
    pub block: u32,
    /// The run's seed.
    pub seed: u64,
}

/// Turns the weights of a block into codes, all at once.
pub trait RoundBlock: Send + Sync {
    /// Codes and parameters for each site.
    ///
    /// # Errors
    /// What makes the block unsolvable; the harness then applies the run's `on-failure`.
    fn round(&self, cx: &BlockContext<'_>) -> Result<Vec<Rounded>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Σ (w − 3)²`, of one weight; steps of a size that overshoots now and then.
    struct Parabola;

    impl Training for Parabola {
        fn windows(&self) -> usize {
            5
        }
        fn loss(&self, _: &[usize], weights: Vec<Vec<f32>>) -> Result<f64> {
            Ok(f64::from(weights[0][0] - 3.0).powi(2))
        }
        fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
            let gradient = 2.0 * (weights[0][0] - 3.0);
            Ok((self.loss(windows, weights)?, vec![vec![gradient]]))
        }
    }

    /// Where it is, and the size of its steps.
    #[derive(Clone)]
    struct Point([f64; 1], f64);

    impl Learner for Point {
        fn weights(&self) -> Vec<Vec<f32>> {
            vec![vec![self.0[0] as f32]]
        }
        fn step(&mut self, gradients: &[Vec<f32>], _: f64) {
            self.0[0] -= self.1 * f64::from(gradients[0][0]);
        }
    }

    #[test]
    fn the_best_is_kept_and_never_worse_than_the_start() {
        let batches = Batches { steps: 8, size: 2, key: [1, 2] };
        let mut good = Point([0.0], 0.25);
        let went = minimize(&Parabola, &mut good, &batches).unwrap();
        assert_eq!((went.initial, went.steps, went.curve.len()), (9.0, 8, 8));
        assert!(went.reached < 1e-3 && (good.0[0] - 3.0).abs() < 0.02);
        // Steps that diverge from the first on.
        let mut bad = Point([2.0], 1.5);
        let went = minimize(&Parabola, &mut bad, &batches).unwrap();
        assert_eq!((went.reached, went.steps, bad.0), (1.0, 0, [2.0]));
        assert_eq!(minimize(&Parabola, &mut bad, &Batches { steps: 0, ..batches }).unwrap().curve, [0.0; 0]);
    }

    /// Counts how often the loss is computed without gradients.
    struct Counted(std::sync::atomic::AtomicUsize);

    impl Training for Counted {
        fn windows(&self) -> usize {
            Parabola.windows()
        }
        fn loss(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<f64> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Parabola.loss(windows, weights)
        }
        fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
            Parabola.gradients(windows, weights)
        }
    }

    /// The start, the last state over all windows and over one batch; and the state that was best on that batch, if the last is worse there.
    #[test]
    fn what_is_worse_where_it_was_best_is_not_tried_over_all_windows() {
        let batches = Batches { steps: 8, size: 2, key: [1, 2] };
        for (step, losses) in [(0.25, 3), (1.5, 4)] {
            let counted = Counted(0.into());
            minimize(&counted, &mut Point([2.0], step), &batches).unwrap();
            assert_eq!(counted.0.into_inner(), losses, "steps of {step}");
        }
    }

    impl Resumable for Point {
        fn state(&self) -> Vec<&[f64]> {
            vec![&self.0]
        }
        fn restored(&self, state: Vec<Vec<f64>>, _: usize) -> Result<Self> {
            Ok(Self([state[0][0]], self.1))
        }
    }

    /// Fails to save from some step on, as a machine that goes down.
    struct Failing(std::cell::RefCell<Option<Halfway<Vec<f64>>>>, usize);

    impl Store for Failing {
        fn load(&self) -> Result<Option<Halfway<Vec<f64>>>> {
            Ok(self.0.borrow().clone())
        }
        fn save(&self, Halfway { initial, curve, now, best }: &Halfway<&[f64]>) -> Result<()> {
            if curve.len() > self.1 {
                return Err(crate::Error::internal("down"));
            }
            let own = |state: &[&[f64]]| state.iter().map(|n| n.to_vec()).collect();
            let best = best.as_ref().map(|(loss, steps, state)| (*loss, *steps, own(state)));
            self.0.replace(Some(Halfway { initial: *initial, curve: curve.clone(), now: own(now), best }));
            Ok(())
        }
    }

    #[test]
    fn learning_goes_on_from_any_step_to_the_same_end() {
        let batches = Batches { steps: 8, size: 2, key: [1, 2] };
        // Overshooting, so that the best is not the last.
        let (start, mut whole) = (Point([0.0], 0.49), Point([0.0], 0.49));
        let went = minimize(&Parabola, &mut whole, &batches).unwrap();
        for stop in 0..8 {
            let store = Failing(None.into(), stop);
            assert!(minimize_stored(&Parabola, &mut start.clone(), &batches, &store).is_err());
            let store = Failing(store.0, 8);
            let mut learner = start.clone();
            assert_eq!(minimize_stored(&Parabola, &mut learner, &batches, &store).unwrap(), went, "from step {stop}");
            assert_eq!(learner.0, whole.0);
        }
    }

    #[test]
    fn a_batch_is_drawn_without_replacement_by_seed_and_step() {
        let batches = Batches { steps: 4, size: 3, key: [1, 2] };
        let drawn: Vec<Vec<usize>> = (0..50).map(|step| batches.draw(step, 5)).collect();
        assert!(drawn.iter().all(|b| b.len() == 3 && b.is_sorted_by(|a, b| a < b) && b[2] < 5));
        assert_eq!(drawn, (0..50).map(|step| batches.draw(step, 5)).collect::<Vec<_>>());
        assert_ne!(drawn[0..25], drawn[25..50]);
        assert_eq!(Batches { size: 9, ..batches }.draw(0, 5), [0, 1, 2, 3, 4]);
        assert!(batches.draw(0, 0).is_empty());
    }
}
