//! The keys of a configuration file, of whichever method.

use super::super::row::Meaning::{NoEffect, Used};
use super::super::row::Row;
use super::super::row::Takes::{Choice, List, Number, Switch, Text, Whole};

const DTYPES: &[&str] = &["int2", "int3", "int4", "fp4", "int8", "fp8", "float16"];
const OF_WEIGHTS: &[&str] = &["per_tensor", "per_channel", "per_group"];
const OF_INPUTS: &[&str] = &["per_tensor", "per_token", "per_group", "per_dimension"];

pub(super) const ROWS: &[Row] = &[
    Row::new("S136", "model", Text, Used).or(&["model-path"]),
    Row::new("S84", "model-type", Text, Used),
    Row::new("S120", "algo", Text, Used),
    Row::new("S85", "w-dtype", Choice(DTYPES), Used),
    Row::new("S86", "a-dtype", Choice(DTYPES), Used),
    Row::new("S87", "num-calibrate", Whole, Used).or(&["nsamples", "nsample"]),
    Row::new("S88", "calibrate-seq-length", Whole, Used).or(&["seqlen"]),
    Row::new("S89", "device", Text, Used),
    Row::new("S90", "offload", Text, NoEffect("`--budget` says how much memory a run may use, and the rest follows")),
    Row::new("S91", "skip-layers", List, Used),
    Row::new("S92", "calibrate-name", Text, Used).or(&["name", "calibrate-data"]),
    Row::new("S92", "split", Text, Used),
    Row::new("S93 S103 S107", "w-groupsize", Whole, Used),
    Row::new("S112", "groupsize", Whole, Used),
    Row::new("S112", "a-groupsize", Whole, Used),
    Row::new("S94 S104 S108", "w-qtype", Choice(OF_WEIGHTS), Used),
    Row::new("S95 S109", "a-qtype", Choice(OF_INPUTS), Used),
    Row::new("S96 S101 S105 S118", "block-sequential", Switch, Used),
    Row::new("S97 S102 S106 S119", "layer-sequential", Switch, Used),
    Row::new("S98", "blocksize", Whole, Used),
    Row::new("S99", "percdamp", Number, Used),
    Row::new("S100", "actorder", Switch, Used),
    Row::new("S110", "alpha", Number, Used),
    Row::new("S111", "quant-out", Switch, Used),
    Row::new("S113", "w-has-zero", Switch, Used),
    Row::new("S114", "a-has-zero", Switch, Used),
    Row::new("S115", "w-unsign", Switch, Used),
    Row::new("S116", "a-unsign", Switch, Used),
    Row::new("S117", "quantization-type", Choice(&["static", "dynamic"]), Used),
    Row::new("S121", "lkd", Switch, Used),
    Row::new("S214", "save", Text, Used),
];
