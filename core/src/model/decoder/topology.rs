//! The parameters, linears and channel spaces of the family.

use super::super::Dims;
use crate::topology::{Allows, Axis, Linear, ParamDecl, Part, PortName as P, Region, Role, SiteId, Slot, Space, Tie, Topology};

/// The topology of the family.
pub(in crate::model) fn topology(d: &Dims) -> Topology {
    let mut t = Topology { blocks: d.blocks as u32, tied_head: d.tied_head, ..Topology::default() };
    let param = |t: &mut Topology, site, part, tensor: String, shape: &[usize]| {
        t.params.push(ParamDecl { site, part, tensor, shape: shape.to_vec(), transposed: false });
    };
    let (q_width, kv_width) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let p = &d.prefix;
    param(&mut t, SiteId::global(Role::Embed), Part::Weight, format!("{p}embed_tokens.weight"), &[d.vocab, d.hidden]);
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        let name = |s: &str| format!("{p}layers.{b}.{s}");
        param(&mut t, at(Role::AttnNorm), Part::Weight, name("input_layernorm.weight"), &[d.hidden]);
        param(&mut t, at(Role::MlpNorm), Part::Weight, name("post_attention_layernorm.weight"), &[d.hidden]);
        if d.qk_norm {
            param(&mut t, at(Role::AttnQNorm), Part::Weight, name("self_attn.q_norm.weight"), &[d.head_dim]);
            param(&mut t, at(Role::AttnKNorm), Part::Weight, name("self_attn.k_norm.weight"), &[d.head_dim]);
        }
        for (role, module, shape, input, output, bias) in [
            (Role::AttnQ, "self_attn.q_proj", (q_width, d.hidden), P::AttnIn, P::Q, d.qkv_bias),
            (Role::AttnK, "self_attn.k_proj", (kv_width, d.hidden), P::AttnIn, P::K, d.qkv_bias),
            (Role::AttnV, "self_attn.v_proj", (kv_width, d.hidden), P::AttnIn, P::V, d.qkv_bias),
            (Role::AttnO, "self_attn.o_proj", (d.hidden, q_width), P::Ctx, P::OOut, d.o_bias),
            (Role::MlpGate, "mlp.gate_proj", (d.ffn, d.hidden), P::MlpIn, P::Gate, d.mlp_bias),
            (Role::MlpUp, "mlp.up_proj", (d.ffn, d.hidden), P::MlpIn, P::Up, d.mlp_bias),
            (Role::MlpDown, "mlp.down_proj", (d.hidden, d.ffn), P::DownIn, P::DownOut, d.mlp_bias),
        ] {
            param(&mut t, at(role), Part::Weight, name(&format!("{module}.weight")), &[shape.0, shape.1]);
            if bias {
                param(&mut t, at(role), Part::Bias, name(&format!("{module}.bias")), &[shape.0]);
            }
            t.linears.push(Linear {
                site: at(role),
                shape,
                input: input.into(),
                output: output.into(),
                bias,
                module: name(module),
                transposed: false,
            });
        }
    }
    param(&mut t, SiteId::global(Role::FinalNorm), Part::Weight, format!("{p}norm.weight"), &[d.hidden]);
    let head = if d.tied_head { format!("{p}embed_tokens.weight") } else { "lm_head.weight".to_owned() };
    param(&mut t, SiteId::global(Role::Head), Part::Weight, head, &[d.vocab, d.hidden]);
    t.linears.push(Linear {
        site: SiteId::global(Role::Head),
        shape: (d.vocab, d.hidden),
        input: P::FinalOut.into(),
        output: P::Logits.into(),
        bias: false,
        module: "lm_head".to_owned(),
        transposed: false,
    });
    t.regions = regions(d);
    t
}

fn regions(d: &Dims) -> Vec<Region> {
    let slot = |site, part, axis| Slot { site, part, axis, range: None };
    let columns = |site| slot(site, Part::Weight, Axis::Columns);
    let rows = |site, bias: bool| {
        let mut slots = vec![slot(site, Part::Weight, Axis::Rows)];
        if bias {
            slots.push(slot(site, Part::Bias, Axis::Rows));
        }
        slots
    };
    let mut residual = Region {
        id: "residual".to_owned(),
        space: Space::Residual,
        block: None,
        width: d.hidden,
        producers: vec![columns(SiteId::global(Role::Embed))],
        consumers: Vec::new(),
        companions: Vec::new(),
        allows: Allows { diagonal: Tie::Never, permutation: Tie::Never, orthogonal: Tie::Free },
    };
    let mut out = Vec::new();
    let repeat = d.heads / d.kv_heads;
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        residual.producers.extend(rows(at(Role::AttnO), d.o_bias));
        residual.producers.extend(rows(at(Role::MlpDown), d.mlp_bias));
        let attn_readers = [Role::AttnQ, Role::AttnK, Role::AttnV].map(|r| columns(at(r)));
        let mlp_readers = [Role::MlpGate, Role::MlpUp].map(|r| columns(at(r)));
        residual.consumers.extend(attn_readers.iter().chain(&mlp_readers).cloned());
        let behind_norm = Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never };
        for (name, space, norm, readers) in [
            ("attn.in", Space::AttnIn, Role::AttnNorm, attn_readers.to_vec()),
            ("mlp.in", Space::MlpIn, Role::MlpNorm, mlp_readers.to_vec()),
        ] {
            out.push(Region {
                id: format!("blocks.{b}.{name}"),
                space,
                block: Some(b),
                width: d.hidden,
                producers: vec![slot(at(norm), Part::Weight, Axis::Rows)],
                consumers: readers,
                companions: Vec::new(),
                allows: behind_norm,
            });
        }
        let per_head = Tie::PerKvHead { width: d.head_dim, repeat };
        out.push(Region {
            id: format!("blocks.{b}.values"),
            space: Space::Values,
            block: Some(b),
            width: d.kv_heads * d.head_dim,
            producers: rows(at(Role::AttnV), d.qkv_bias),
            consumers: vec![columns(at(Role::AttnO))],
            companions: Vec::new(),
            allows: Allows { diagonal: per_head, permutation: per_head, orthogonal: per_head },
        });
        out.push(heads(d, b, rows(at(Role::AttnK), d.qkv_bias), rows(at(Role::AttnQ), d.qkv_bias)));
        out.push(Region {
            id: format!("blocks.{b}.mlp.hidden"),
            space: Space::MlpHidden,
            block: Some(b),
            width: d.ffn,
            producers: rows(at(Role::MlpUp), d.mlp_bias),
            consumers: vec![columns(at(Role::MlpDown))],
            companions: rows(at(Role::MlpGate), d.mlp_bias),
            allows: Allows { diagonal: Tie::Free, permutation: Tie::Free, orthogonal: Tie::Never },
        });
    }
    let head = columns(SiteId::global(Role::Head));
    residual.consumers.push(head.clone());
    out.insert(0, residual);
    out.push(Region {
        id: "head.in".to_owned(),
        space: Space::HeadIn,
        block: None,
        width: d.hidden,
        producers: vec![slot(SiteId::global(Role::FinalNorm), Part::Weight, Axis::Rows)],
        consumers: vec![head],
        companions: Vec::new(),
        // A tied head cannot absorb a scaling: the embedding would be scaled with it.
        allows: Allows { diagonal: if d.tied_head { Tie::Never } else { Tie::Free }, permutation: Tie::Never, orthogonal: Tie::Never },
    });
    out
}

/// Queries and keys of block `b`. Where norms stand on the heads of q and k, a scaling of the projections' rows would be undone by
/// them; the last to write are then the norms' own weights, which all heads share: one head of channels.
fn heads(d: &Dims, b: u32, keys: Vec<Slot>, queries: Vec<Slot>) -> Region {
    let norm = |role| vec![Slot { site: SiteId::in_block(b, role), part: Part::Weight, axis: Axis::Rows, range: None }];
    let (kv_heads, repeat, producers, consumers) =
        if d.qk_norm { (1, 1, norm(Role::AttnKNorm), norm(Role::AttnQNorm)) } else { (d.kv_heads, d.heads / d.kv_heads, keys, queries) };
    let rotated = d.rope.as_ref().map_or(0, |rope| rope.dim);
    let diagonal = Tie::PerRopePair { width: d.head_dim, repeat, rotated };
    Region {
        id: format!("blocks.{b}.heads"),
        space: Space::Heads,
        block: Some(b),
        width: kv_heads * d.head_dim,
        producers,
        consumers,
        companions: Vec::new(),
        allows: Allows { diagonal, permutation: Tie::Never, orthogonal: Tie::Never },
    }
}
