"""The native form of a checkpoint, decoded by its description (`core/src/checkpoint/native.rs`)."""

import json

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM


def small_floats(form, bits):
    """The value of every code of a float without infinities: sign, exponent, mantissa."""
    exp, man, bias = form["exp"], form["man"], form["bias"]
    code = np.arange(1 << bits)
    e, m = code >> man & ((1 << exp) - 1), code & ((1 << man) - 1)
    value = np.where(e == 0, m, m + (1 << man)) * 2.0 ** (np.maximum(e, 1) - bias - man)
    return np.where(code >> (exp + man) == 1, -value, value)


def dense(native):
    """The model that a native checkpoint stands for, in f32."""
    config = json.loads((native / "config.json").read_text())
    state = load_file(native / "model.safetensors")
    for entry in config.pop("quantization_config")["modules"]:
        name, bits, (rows, cols) = entry["module"], entry["spec"]["bits"], entry["shape"]
        packed, scale = state.pop(f"{name}.codes").numpy(), state.pop(f"{name}.scale").numpy()
        zero, index = state.pop(f"{name}.zero", None), state.pop(f"{name}.group_index", None)
        stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : cols * bits].reshape(rows, cols, bits)
        codes, grid = (stream * (1 << np.arange(bits))).sum(-1), entry["spec"]["grid"]
        codes = codes + grid["int"]["lo"] if "int" in grid else small_floats(grid["float"], bits)[codes]
        state.pop(f"{name}.global", None)
        index = np.arange(cols) // -(-cols // scale.shape[1]) if index is None else index.numpy()
        weight = torch.tensor(scale[:, index] * (codes - (0 if zero is None else zero.numpy()[:, index])), dtype=torch.float32)
        state[f"{name}.weight"] = weight.t().contiguous() if entry["transposed"] else weight
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    report = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    missing = [k for k in report.missing_keys if not (k.startswith("lm_head") and config["tie_word_embeddings"])]
    assert not missing and not report.unexpected_keys, (missing, report.unexpected_keys)
    model.tie_weights()
    return model.eval()
