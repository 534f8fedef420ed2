//! The native form as a container.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    ACTIVATIONS, BRANCH, NativeReader, NativeSite, SUFFIXES, declare_site, decode_activation, decode_site, encode_activation,
    encode_branch, encode_site,
};
use crate::checkpoint::dequantized::{Dequantized, ReadRounded, VirtualWeight};
use crate::checkpoint::formats::{BranchPlace, Container, StoredActivation, Verdict};
use crate::checkpoint::{ContainerWriter, TensorDecl, TensorSource};
use crate::error::{Error, Result};
use crate::model::StoredBranch;
use crate::plan::{Plan, PlannedActivation, PlannedBranch};
use crate::scheme::Timing;
use crate::topology::{OnlineRotation, OnlineStep, Place, Topology};

pub(super) struct Native;

impl Container for Native {
    fn accepts(&self, _: &Plan) -> Verdict {
        Verdict::Exact
    }

    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Inside
    }

    fn carries(&self, _: &OnlineStep) -> bool {
        true
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        let mut out = Vec::new();
        for site in &native.sites {
            out.extend(declare_site(site, native.group_index(site)?));
            out.extend(branch_tensors(native, site)?.into_iter().map(|(decl, _)| decl));
        }
        for a in &native.activations {
            if let Some(params) = native.activation_params(a)? {
                out.extend(encode_activation(a, &params).into_iter().map(|(decl, _)| decl));
            }
        }
        for info in native.plain() {
            out.push(TensorDecl { name: info.name.clone(), dtype: info.dtype.clone(), shape: info.shape.clone() });
        }
        Ok(out)
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        for site in &native.sites {
            let mut tensors = encode_site(site, &native.rounded(site)?).tensors;
            tensors.extend(branch_tensors(native, site)?);
            tensors.iter().try_for_each(|(decl, bytes)| out.write(&decl.name, bytes))?;
        }
        for a in &native.activations {
            if let Some(params) = native.activation_params(a)? {
                encode_activation(a, &params).iter().try_for_each(|(decl, bytes)| out.write(&decl.name, bytes))?;
            }
        }
        for info in native.plain() {
            native.copy_plain(&info.name, out)?;
        }
        Ok(())
    }

    fn quantization_config(&self, plan: &Plan) -> Result<Value> {
        let mut config = json!({ "quant_method": "qfw", "version": 1, "modules": plan.native_sites(), "activations": plan.activations });
        let (mut rotations, mut multipliers) = (Vec::new(), Vec::new());
        for step in plan.online() {
            match step {
                OnlineStep::Rotation(rotation) => rotations.push(rotation),
                OnlineStep::Multiplier(place) => multipliers.push(place),
            }
        }
        if !rotations.is_empty() {
            config["rotations"] = json!(rotations);
        }
        if !multipliers.is_empty() {
            config["multipliers"] = json!(multipliers);
        }
        if !plan.branches.is_empty() {
            config["branches"] = json!(plan.branches);
        }
        Ok(config)
    }

    fn claims(&self, quantization_config: &Value) -> bool {
        quantization_config.get("quant_method").and_then(Value::as_str) == Some("qfw")
    }

    fn read(&self, config: &Value, _: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        let bad = |e: String| Error::input("checkpoint::malformed", format!("`quantization_config` in config.json: {e}"));
        if config.get("version").and_then(Value::as_u64) != Some(1) {
            return Err(bad("unknown version of the native form".to_owned()).hint("it was written by a newer qfw"));
        }
        let sites: Vec<NativeSite> =
            serde_json::from_value(config.get("modules").cloned().unwrap_or(Value::Null)).map_err(|e| bad(e.to_string()))?;
        let virtual_weights = sites
            .into_iter()
            .map(|site| {
                let hidden = SUFFIXES.map(|s| format!("{}.{s}", site.module)).to_vec();
                let read: ReadRounded = Box::new(decode_site);
                (VirtualWeight { site, hidden }, read)
            })
            .collect();
        let parameters: Vec<String> = tensors.names().into_iter().filter(|n| n.starts_with(ACTIVATIONS)).collect();
        Ok(Arc::new(Dequantized::new(tensors, virtual_weights).without(parameters)))
    }

    fn activations(&self, config: &Value, tensors: &dyn TensorSource, _: &Topology) -> Result<Vec<StoredActivation>> {
        let planned: Vec<PlannedActivation> = listed(config, "activations")?;
        let with_params = |planned: PlannedActivation| {
            let params = if planned.spec.timing == Timing::Static { Some(decode_activation(&planned, tensors)?) } else { None };
            Ok(StoredActivation { planned, params })
        };
        planned.into_iter().map(with_params).collect()
    }

    fn online(&self, config: &Value, _: &Topology) -> Result<Vec<OnlineStep>> {
        let rotations: Vec<OnlineRotation> = listed(config, "rotations")?;
        let multipliers: Vec<Place> = listed(config, "multipliers")?;
        let multipliers = multipliers.into_iter().map(OnlineStep::Multiplier);
        Ok(rotations.into_iter().map(OnlineStep::Rotation).chain(multipliers).collect())
    }

    fn branches(&self, config: &Value) -> Result<Vec<StoredBranch>> {
        let planned: Vec<PlannedBranch> = listed(config, "branches")?;
        let [a, b] = BRANCH;
        let stored =
            |p: PlannedBranch| StoredBranch { a: format!("{}.{a}", p.a), b: format!("{}.{b}", p.module), module: p.module, rank: p.rank };
        Ok(planned.into_iter().map(stored).collect())
    }
}

/// What a list of the configuration has; one that is not there is empty.
fn listed<T: DeserializeOwned>(config: &Value, key: &str) -> Result<Vec<T>> {
    let Some(list) = config.get(key) else { return Ok(Vec::new()) };
    serde_json::from_value(list.clone())
        .map_err(|e| Error::input("checkpoint::malformed", format!("`quantization_config.{key}` in config.json: {e}")))
}

/// The stored tensors of the branch beside a module, if it has one.
fn branch_tensors(native: &NativeReader, site: &NativeSite) -> Result<Vec<(TensorDecl, Vec<u8>)>> {
    let Some(branch) = native.branches.iter().find(|b| b.module == site.module) else { return Ok(Vec::new()) };
    let [a, b] = native.branch(branch)?;
    Ok(encode_branch(branch, &a, &b))
}
