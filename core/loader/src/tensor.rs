//! Tensors that are lent to a plugin: views of what core owns, and outputs.

use std::any::Any;
use std::marker::PhantomData;
use std::ptr::null_mut;

use qfw_abi::raw;
use qfw_core::Result;

use crate::plugin_error;

/// A type of numbers that crosses the border.
pub(crate) trait Element: Copy + PartialEq + Default + Send + Sync + 'static {
    /// DLPack's code and bits.
    const TYPE: (u8, u8);
    /// What stands behind an output, to see that nobody wrote there.
    const GUARD: Self;
    /// Bit by bit: a guard may be no number.
    fn same(self, other: Self) -> bool;
}

macro_rules! element {
    ($type:ty, $code:literal, $bits:literal, $guard:expr) => {
        impl Element for $type {
            const TYPE: (u8, u8) = ($code, $bits);
            const GUARD: Self = $guard;
            fn same(self, other: Self) -> bool {
                self.to_ne_bytes() == other.to_ne_bytes()
            }
        }
    };
}
element!(u8, 1, 8, 0xa5);
element!(u16, 1, 16, 0xa5c3);
element!(u32, 1, 32, 0xa5c3_9d27);
element!(f32, 2, 32, f32::from_bits(0xffc3_9d27));
element!(f64, 2, 64, f64::from_bits(0xfff8_a5c3_9d27_1b3e));

/// A descriptor; what it describes outlives it.
pub(crate) struct Lent<'a> {
    raw: raw::Tensor,
    // The descriptor points to it.
    _shape: Box<[i64]>,
    _of: PhantomData<&'a ()>,
}

impl<'a> Lent<'a> {
    fn new<T: Element>(data: *mut T, shape: &[usize], flags: u64) -> Self {
        let mut shape: Box<[i64]> = shape.iter().map(|n| *n as i64).collect();
        let (code, bits) = T::TYPE;
        let raw = raw::Tensor {
            version: raw::DLPACK,
            manager_ctx: null_mut(),
            deleter: None,
            flags,
            dl_tensor: raw::DlTensor {
                data: data.cast(),
                device: raw::DlDevice { device_type: raw::CPU, device_id: 0 },
                ndim: shape.len() as i32,
                dtype: raw::DlDataType { code, bits, lanes: 1 },
                shape: shape.as_mut_ptr(),
                strides: null_mut(),
                byte_offset: 0,
            },
        };
        Self { raw, _shape: shape, _of: PhantomData }
    }

    /// A view that must not be written to; its length is that of the shape.
    pub(crate) fn view<T: Element>(data: &'a [T], shape: &[usize]) -> Self {
        debug_assert_eq!(data.len(), shape.iter().product::<usize>(), "a view of {shape:?}");
        Self::new(data.as_ptr().cast_mut(), shape, raw::READ_ONLY)
    }

    pub(crate) fn raw(&self) -> *const raw::Tensor {
        &self.raw
    }
}

/// Elements behind an output that are watched.
const WATCHED: usize = 64;

/// An output of any type.
pub(crate) trait Watched: Send {
    /// Its descriptor.
    fn raw(&self) -> *mut raw::Tensor;
    /// Its extents.
    fn shape(&self) -> Vec<usize>;
    /// Whether nothing was written behind its end; the call has returned.
    fn intact(&self) -> bool;
    /// For who knows its type.
    fn as_any(&self) -> &dyn Any;
}

/// An output: zeroed numbers of the host's, with a guard behind them.
pub(crate) struct Output<T: Element> {
    numbers: Vec<T>,
    /// The host's own: a plugin could write to those of the descriptor.
    shape: Vec<usize>,
    lent: Lent<'static>,
}

// SAFETY: the descriptor points to what the output owns itself; plugins may write to it from any thread, as to an atomic-free buffer that
// the host does not touch until the call has returned.
#[allow(unsafe_code, reason = "see above")]
unsafe impl<T: Element> Send for Output<T> {}

impl<T: Element> Output<T> {
    /// Zeros of a shape that the plugin has chosen; `None` where there is no memory for it.
    pub(crate) fn asked(shape: &[usize]) -> Option<Self> {
        let len = shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent))?;
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(len.checked_add(WATCHED)?).ok()?;
        numbers.resize(len + WATCHED, T::default());
        Some(Self::guarded(numbers, shape))
    }

    /// Zeros of the shape of a layer, straight from the allocator.
    pub(crate) fn zeros(shape: &[usize]) -> Self {
        Self::guarded(vec![T::default(); shape.iter().product::<usize>() + WATCHED], shape)
    }

    /// These numbers, as an output that may be changed.
    pub(crate) fn of(numbers: &[T], shape: &[usize]) -> Self {
        let mut all = Vec::with_capacity(numbers.len() + WATCHED);
        all.extend_from_slice(numbers);
        all.resize(numbers.len() + WATCHED, T::default());
        Self::guarded(all, shape)
    }

    /// Numbers with room for the guard behind them.
    fn guarded(mut numbers: Vec<T>, shape: &[usize]) -> Self {
        let len = numbers.len() - WATCHED;
        numbers[len..].fill(T::GUARD);
        let lent = Lent::new(numbers.as_mut_ptr(), shape, 0);
        Self { numbers, shape: shape.to_vec(), lent }
    }

    /// The numbers, once the call has returned and the output was seen to be [intact](Watched::intact).
    pub(crate) fn take(mut self) -> Vec<T> {
        self.numbers.truncate(self.numbers.len() - WATCHED);
        self.numbers
    }

    /// The numbers, while the call runs; nobody may be writing.
    pub(crate) fn numbers(&self) -> &[T] {
        &self.numbers[..self.numbers.len() - WATCHED]
    }
}

impl<T: Element> Watched for Output<T> {
    fn raw(&self) -> *mut raw::Tensor {
        std::ptr::from_ref(&self.lent.raw).cast_mut()
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn intact(&self) -> bool {
        self.numbers[self.numbers.len() - WATCHED..].iter().all(|x| x.same(T::GUARD))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Refuses what was written behind the end of outputs, whatever the call has returned.
///
/// # Errors
/// For the first, by its name.
pub(crate) fn unharmed(outputs: &[(&str, &dyn Watched)]) -> Result<()> {
    match outputs.iter().find(|(_, output)| !output.intact()) {
        Some((what, _)) => Err(plugin_error("plugin::contract", format!("it wrote behind the end of its {what}"))),
        None => Ok(()),
    }
}
