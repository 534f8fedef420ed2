//! Where every member of the interface lies. A test compares it with `abi.lock`: a line that changes is a broken promise.

use std::mem::{offset_of, size_of};

use crate::raw;

/// One struct: its name in C, its size, and its members with their offsets.
pub struct Layout {
    /// Name in the header.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Members in order, with their offsets in bytes.
    pub members: Vec<(&'static str, usize)>,
}

macro_rules! layouts {
    ($($name:literal = $type:ty { $($member:ident),* $(,)? })*) => {
        vec![$(Layout {
            name: $name,
            size: size_of::<$type>(),
            members: vec![$((stringify!($member), offset_of!($type, $member))),*],
        }),*]
    };
}

/// Every struct of the interface.
pub fn layouts() -> Vec<Layout> {
    layouts! {
        "DLDevice" = raw::DlDevice { device_type, device_id }
        "DLDataType" = raw::DlDataType { code, bits, lanes }
        "DLTensor" = raw::DlTensor { data, device, ndim, dtype, shape, strides, byte_offset }
        "DLManagedTensorVersioned" = raw::Tensor { version, manager_ctx, deleter, flags, dl_tensor }
        "qfw_version" = raw::Version { major, minor }
        "qfw_str" = raw::Str { ptr, len }
        "qfw_host" = raw::Host { size, abi, threads, ctx, set_error, log, cancelled, progress, reply, event, alloc, extension }
        "qfw_grid" = raw::Grid {
            size, kind, lo, hi, bits, zero, fixed_zero, exponent, mantissa, variant, levels, n_levels,
        }
        "qfw_tiles" = raw::Tiles { size, reserved, rows, cols, tile_rows, tile_cols }
        "qfw_stat" = raw::Stat { size, kind, stream, reserved, tokens, id, tensor }
        "qfw_site" = raw::Site {
            size, stream, token, name, role, block, seed, weight, original, ranged, stats, n_stats, grid, tiles, spec, input, linear, amax, flags,
        }
        "qfw_factor" = raw::Factor { size, reserved, n, u, order, dead, n_dead, damp }
        "qfw_numeric" = raw::Numeric { size, reserved, gemm, fit, nearest, expand, factor, sweep, random, parallel_for }
        "qfw_algo_desc" = raw::AlgoDesc { size, phase, id, summary, options_schema, needs, flags, reserved }
        "qfw_algo" = raw::Algo { size, reserved, state, options, destroy, extension }
        "qfw_plan" = raw::PlanExt { size, reserved, needs }
        "qfw_round_out" = raw::RoundOut { size, reserved, codes, scale, zero, group_index }
        "qfw_round" = raw::RoundExt { size, reserved, round }
        "qfw_condition_out" = raw::ConditionOut { size, reserved, weight, ranged }
        "qfw_condition" = raw::ConditionExt { size, reserved, condition }
        "qfw_split_out" = raw::SplitOut { size, stored, rank, a, b }
        "qfw_split" = raw::SplitExt { size, reserved, after_rounding, split }
        "qfw_region" = raw::Region {
            size, space, name, block, width, head_width, repeat, rotated, allows, stream, seed, readers, n_readers, stats, n_stats,
        }
        "qfw_transform_out" = raw::TransformOut { size, reserved, factor }
        "qfw_transform" = raw::TransformExt { size, reserved, suits, solve }
        "qfw_format_desc" = raw::FormatDesc { size, reserved, id, summary, grid }
        "qfw_formats" = raw::Formats { size, reserved, count, describe }
        "qfw_plugin" = raw::Plugin { size, abi, reserved, id, version, count, describe, create, extension }
    }
}

/// The size that each struct of a plugin's had first, by its name in C.
pub fn first_sizes() -> Vec<(&'static str, usize)> {
    use raw::Grows;
    vec![
        ("qfw_grid", raw::Grid::FIRST),
        ("qfw_algo_desc", raw::AlgoDesc::FIRST),
        ("qfw_algo", raw::Algo::FIRST),
        ("qfw_plan", raw::PlanExt::FIRST),
        ("qfw_round", raw::RoundExt::FIRST),
        ("qfw_condition", raw::ConditionExt::FIRST),
        ("qfw_split", raw::SplitExt::FIRST),
        ("qfw_transform", raw::TransformExt::FIRST),
        ("qfw_format_desc", raw::FormatDesc::FIRST),
        ("qfw_formats", raw::Formats::FIRST),
        ("qfw_plugin", raw::Plugin::FIRST),
    ]
}

/// [`layouts`] as text, one line a struct or member: `qfw_host 96`, `qfw_host.ctx 16`.
pub fn text() -> String {
    let mut out = String::new();
    for layout in layouts() {
        out.push_str(&format!("{} {}\n", layout.name, layout.size));
        for (member, offset) in layout.members {
            out.push_str(&format!("{}.{member} {offset}\n", layout.name));
        }
    }
    out
}
