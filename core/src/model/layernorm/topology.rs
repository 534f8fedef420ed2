//! The parameters, linears and channel spaces of the family.

use std::ops::Range;

use super::super::Dims;
use super::Family;
use crate::numeric::Activation;
use crate::topology::{Allows, Axis, Linear, ParamDecl, Part, PortName as P, Region, Role, SiteId, Slot, Space, Tie, Topology};

/// The topology of a model of the family.
pub(in crate::model) fn topology(family: &Family, d: &Dims) -> Topology {
    let mut t = Topology { blocks: d.blocks as u32, tied_head: d.tied_head, layer_norm: true, ..Topology::default() };
    let mut param = |site, part, tensor: String, shape: &[usize], transposed| {
        t.params.push(ParamDecl { site, part, tensor, shape: shape.to_vec(), transposed });
    };
    let p = &d.prefix;
    let embed = format!("{p}{}.weight", family.embed);
    param(SiteId::global(Role::Embed), Part::Weight, embed.clone(), &[d.vocab, d.hidden], false);
    let rows = d.max_positions + d.position_offset;
    param(SiteId::global(Role::PositionEmbed), Part::Weight, format!("{p}{}.weight", family.positions), &[rows, d.hidden], false);
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        let name = |s: &str| format!("{p}{}.{b}.{s}", family.blocks);
        for (role, norm) in [(Role::AttnNorm, family.attn_norm), (Role::MlpNorm, family.mlp_norm)] {
            param(at(role), Part::Weight, name(&format!("{norm}.weight")), &[d.hidden], false);
            param(at(role), Part::Bias, name(&format!("{norm}.bias")), &[d.hidden], false);
        }
        for &(role, module) in family.linears {
            let (shape, input, output) = place(d, role);
            let (module, bias) = (name(module), super::has_bias(d, role));
            param(at(role), Part::Weight, format!("{module}.weight"), &[shape.0, shape.1], family.transposed);
            if bias {
                param(at(role), Part::Bias, format!("{module}.bias"), &[shape.0], false);
            }
            let (input, output, transposed) = (input.into(), output.into(), family.transposed);
            t.linears.push(Linear { site: at(role), shape, input, output, bias, module, transposed });
        }
    }
    let final_norm = SiteId::global(Role::FinalNorm);
    param(final_norm, Part::Weight, format!("{p}{}.weight", family.final_norm), &[d.hidden], false);
    param(final_norm, Part::Bias, format!("{p}{}.bias", family.final_norm), &[d.hidden], false);
    let head = if d.tied_head { embed } else { "lm_head.weight".to_owned() };
    param(SiteId::global(Role::Head), Part::Weight, head, &[d.vocab, d.hidden], false);
    t.linears.push(Linear {
        site: SiteId::global(Role::Head),
        shape: (d.vocab, d.hidden),
        input: P::FinalOut.into(),
        output: P::Logits.into(),
        bias: false,
        module: "lm_head".to_owned(),
        transposed: false,
    });
    t.regions = regions(family, d);
    t
}

/// The shape of a linear, and where its input and output can be observed.
fn place(d: &Dims, role: Role) -> ((usize, usize), P, P) {
    let h = d.hidden;
    match role {
        Role::AttnQkv => ((3 * h, h), P::AttnIn, P::Q),
        Role::AttnQ => ((h, h), P::AttnIn, P::Q),
        Role::AttnK => ((h, h), P::AttnIn, P::K),
        Role::AttnV => ((h, h), P::AttnIn, P::V),
        Role::AttnO => ((h, h), P::Ctx, P::OOut),
        Role::MlpUp => ((d.ffn, h), P::MlpIn, P::Up),
        _ => ((h, d.ffn), P::DownIn, P::DownOut),
    }
}

fn regions(family: &Family, d: &Dims) -> Vec<Region> {
    let slot = |site, part, axis, range: Option<Range<usize>>| Slot { site, part, axis, range };
    let columns = |site| slot(site, Part::Weight, Axis::Columns, None);
    let rows = |site: SiteId, range: Option<Range<usize>>| {
        let mut slots = vec![slot(site, Part::Weight, Axis::Rows, range.clone())];
        if super::has_bias(d, site.role) {
            slots.push(slot(site, Part::Bias, Axis::Rows, range));
        }
        slots
    };
    let mut residual = Region {
        id: "residual".to_owned(),
        space: Space::Residual,
        block: None,
        width: d.hidden,
        producers: vec![columns(SiteId::global(Role::Embed)), columns(SiteId::global(Role::PositionEmbed))],
        consumers: Vec::new(),
        companions: Vec::new(),
        allows: Allows { diagonal: Tie::Never, permutation: Tie::Never, orthogonal: Tie::KeepsMean },
    };
    // What a norm adds lies in the basis of the stream: it has to turn with it. Folding leaves zeros there, except before readers that
    // have no bias to fold it into, such as the head.
    let shift = |site| slot(site, Part::Bias, Axis::Rows, None);
    let mut out = Vec::new();
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        let attn_readers: Vec<Slot> = family.attn_roles().iter().map(|role| columns(at(*role))).collect();
        let mlp_readers = vec![columns(at(Role::MlpUp))];
        residual.producers.extend(rows(at(Role::AttnO), None));
        residual.producers.extend(rows(at(Role::MlpDown), None));
        residual.consumers.extend(attn_readers.iter().chain(&mlp_readers).cloned());
        residual.companions.extend([shift(at(Role::AttnNorm)), shift(at(Role::MlpNorm))]);
        for (name, space, norm, readers) in
            [("attn.in", Space::AttnIn, Role::AttnNorm, attn_readers), ("mlp.in", Space::MlpIn, Role::MlpNorm, mlp_readers)]
        {
            out.push(Region {
                id: format!("blocks.{b}.{name}"),
                space,
                block: Some(b),
                width: d.hidden,
                producers: rows(at(norm), None),
                consumers: readers,
                companions: Vec::new(),
                allows: Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never },
            });
        }
        let h = d.hidden;
        // Rows of the `i`-th of q, k and v.
        let third = |i: usize, role| {
            if family.fused() { rows(at(Role::AttnQkv), Some(i * h..(i + 1) * h)) } else { rows(at(role), None) }
        };
        let per_head = Tie::PerKvHead { width: d.head_dim, repeat: 1 };
        let heads = |name: &str, space, producers, consumers| Region {
            id: format!("blocks.{b}.{name}"),
            space,
            block: Some(b),
            width: h,
            producers,
            consumers,
            companions: Vec::new(),
            allows: Allows { diagonal: per_head, permutation: per_head, orthogonal: per_head },
        };
        out.push(heads("values", Space::Values, third(2, Role::AttnV), vec![columns(at(Role::AttnO))]));
        // Without rotation between them, q and k may be scaled against each other channel by channel.
        out.push(heads("heads", Space::Heads, third(1, Role::AttnK), third(0, Role::AttnQ)));
        // A non-linearity that is not homogeneous stands between up and down: no scaling, unless it is a ReLU.
        let diagonal = if d.activation == Activation::Relu { Tie::Free } else { Tie::Never };
        out.push(Region {
            id: format!("blocks.{b}.mlp.hidden"),
            space: Space::MlpHidden,
            block: Some(b),
            width: d.ffn,
            producers: rows(at(Role::MlpUp), None),
            consumers: vec![columns(at(Role::MlpDown))],
            companions: Vec::new(),
            allows: Allows { diagonal, permutation: Tie::Free, orthogonal: Tie::Never },
        });
    }
    let (final_norm, head) = (SiteId::global(Role::FinalNorm), columns(SiteId::global(Role::Head)));
    residual.consumers.push(head.clone());
    residual.companions.push(shift(final_norm));
    out.insert(0, residual);
    out.push(Region {
        id: "head.in".to_owned(),
        space: Space::HeadIn,
        block: None,
        width: d.hidden,
        producers: rows(final_norm, None),
        consumers: vec![head],
        companions: Vec::new(),
        // A tied head cannot absorb a scaling: the embedding would be scaled with it.
        allows: Allows { diagonal: if d.tied_head { Tie::Never } else { Tie::Free }, permutation: Tie::Never, orthogonal: Tie::Never },
    });
    out
}
