"""llm-compressor's side of `cargo xtask compare`: the same recipe on the same ids, and what it took.

    python llm_compressor.py MODEL IDS OUT METHOD GROUP SYMMETRY

METHOD is `rtn` or `gptq`: int4 weights, `symmetric` or `affine` as SYMMETRY says, groups of GROUP input channels, everything but the
head; gptq with columns ordered by activation (static groups), blocks of 128 and damping 0.01. `w8a8` and `fp8-dynamic` are the library's
own schemes of 8-bit weights per channel and inputs per token, `kv8` is its 8-bit float cache, calibrated on IDS. `awq` scales channels
and rounds to int4 as `rtn` does. `w4a4` is int4 weights per channel and int4 inputs per token, rotated by random Hadamard matrices (R1,
R2) and rounded by gptq. IDS is a safetensors file with `input_ids` [samples, length].
OUT receives the compressed checkpoint. The last line printed is one JSON object; its times cover the quantization step alone,
not imports, loading or saving.
"""

import json
import resource
import sys
import time

import llmcompressor
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

try:
    from llmcompressor.modifiers.gptq import GPTQModifier
except ImportError:  # before 0.10 or so it lived here
    from llmcompressor.modifiers.quantization import GPTQModifier


CALIBRATED = {"gptq", "kv8", "awq", "w4a4"}


def recipe(method, group, symmetric):
    if method in ("w8a8", "fp8-dynamic"):
        scheme = method.upper().replace("-", "_")
        return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    if method == "kv8":
        cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
        return QuantizationModifier(kv_cache_scheme=cache)
    if method == "w4a4":
        from llmcompressor.modifiers.transform import SpinQuantModifier

        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "actorder": "static"}
        inputs = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        scheme = QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(**weights), input_activations=QuantizationArgs(**inputs)
        )
        return [
            SpinQuantModifier(rotations=["R1", "R2"], transform_type="random-hadamard"),
            GPTQModifier(config_groups={"linears": scheme}, ignore=["lm_head"], dampening_frac=0.01, block_size=128),
        ]
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    if method == "gptq":
        weights["actorder"] = "static"
    groups = {"linears": QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))}
    if method == "gptq":
        return GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=0.01, block_size=128)
    rounding = QuantizationModifier(config_groups=groups, ignore=["lm_head"])
    if method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQModifier

        # It pins what it caches for a card even where there is none.
        if not torch.cuda.is_available():
            torch.Tensor.pin_memory = lambda self, *_: self
        return [AWQModifier(), rounding]
    return rounding


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    model_path, ids_path, out, method, group, symmetry = sys.argv[1:7]
    ids = load_file(ids_path)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    calibration = {"dataset": data, "max_seq_length": ids.shape[1], "num_calibration_samples": ids.shape[0]}
    calibrated = {**calibration, "shuffle_calibration_samples": False} if method in CALIBRATED else {}
    started, used = time.monotonic(), cpu_seconds()
    oneshot(model=model, recipe=recipe(method, int(group), symmetry == "symmetric"), **calibrated)
    took, used = time.monotonic() - started, cpu_seconds() - used
    model.save_pretrained(out, save_compressed=True)
    print(
        json.dumps(
            {
                "peer": f"llm-compressor {llmcompressor.__version__}",
                "wall_seconds": took,
                "cpu_seconds": used,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


main()
