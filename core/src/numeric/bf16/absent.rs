//! The same names where no CPU has the instructions: without a unit nobody can call them.

use std::ops::Range;

use super::Bf16Unit;
use crate::numeric::{AttentionShape, Onto};

/// Has no values here.
#[derive(Clone, Debug)]
pub struct Bf16Panels(Bf16Unit);

impl Bf16Panels {
    /// Needs a unit.
    pub fn new(unit: Bf16Unit, _: &[f32], _: (usize, usize)) -> Self {
        match unit.0 {}
    }

    /// Needs a unit.
    pub fn of_transpose(unit: Bf16Unit, _: &[f32], _: (usize, usize)) -> Self {
        match unit.0 {}
    }

    /// What rounds what it is multiplied with.
    pub fn unit(&self) -> Bf16Unit {
        self.0
    }

    /// Rows and columns of B.
    pub fn shape(&self) -> (usize, usize) {
        match self.0.0 {}
    }

    /// `C ← A·Bᵀ`
    pub fn product(&self, _: &[f32], _: usize, _: Onto, _: &mut [f32]) {
        match self.0.0 {}
    }

    /// `C ← A·Bᵀ`, for each B.
    pub fn products<const N: usize>(all: [&Self; N], _: &[f32], _: usize, _: Onto, _: [&mut [f32]; N]) {
        if let Some(b) = all.first() {
            match b.0.0 {}
        }
    }

    /// `C ← f(A·Bᵀ, A·Dᵀ)`
    pub fn combined(b: &Self, _: &Self, _: &[f32], _: usize, _: &mut [f32], _: impl Fn(&mut [f32], &[f32])) {
        match b.0.0 {}
    }
}

/// Needs a unit.
pub fn gram_bf16(unit: Bf16Unit, _: &[f32], _: usize, _: &mut [f32]) {
    match unit.0 {}
}

/// Has no values here.
#[derive(Debug)]
pub(in crate::numeric) struct Bf16Left(Bf16Unit);

impl Bf16Left {
    /// Needs a unit.
    pub(in crate::numeric) fn new(unit: Bf16Unit, _: &[f32], _: usize) -> Self {
        match unit.0 {}
    }
}

/// Has no values here.
#[derive(Debug)]
pub(in crate::numeric) struct Bf16Right(Bf16Unit);

impl Bf16Right {
    /// Needs a unit.
    pub(in crate::numeric) fn new(unit: Bf16Unit, _: &[f32], _: usize) -> Self {
        match unit.0 {}
    }
}

/// `C ← Σ GᵀX`
pub(in crate::numeric) fn sum_across(all: &[(&Bf16Left, &Bf16Right)], _: Range<usize>, _: Onto, _: &mut [f32]) {
    if let Some((g, _)) = all.first() {
        match g.0.0 {}
    }
}

/// Needs a unit.
pub fn across_bf16(unit: Bf16Unit, _: (&[f32], usize), _: (&[f32], usize), _: &mut [f32]) {
    match unit.0 {}
}

/// As where there is a unit; never asked for.
pub(in crate::numeric) const WIDEST_HEAD: usize = 576;

/// Needs a unit.
pub(in crate::numeric) fn attention_bf16(
    unit: Bf16Unit,
    _: &[f32],
    _: (&[f32], &[f32]),
    _: (usize, usize),
    _: &AttentionShape,
    _: &mut [f32],
) {
    match unit.0 {}
}

/// Needs a unit.
pub(in crate::numeric) fn attention_backward_bf16(
    unit: Bf16Unit,
    _: (&[f32], &[f32], &[f32]),
    _: (&[f32], &[f32]),
    _: (usize, usize),
    _: &AttentionShape,
    _: (&mut [f32], &mut [f32], &mut [f32]),
) {
    match unit.0 {}
}
