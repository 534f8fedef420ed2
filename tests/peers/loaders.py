"""What other loaders make of the containers `gptq`, `gptq-v2` and `awq`, against the same weights in floats.

    BUILD_CUDA_EXT=0 pip install gptqmodel==7.7.0 optimum transformers==5.23.0
    python loaders.py QFW DIR

QFW is the program, DIR an empty directory. Each recipe quantizes an embedded tiny model into the native form, which is decoded here by its
description, and into the containers. A line is a recipe, a container, and for each loader the largest difference of a logit over the largest
logit, or how it failed. transformers computes in f32, GPTQModel in bf16.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from native import dense  # noqa: E402

ASSETS = Path(__file__).parents[2] / "cli" / "assets"
GROUP = "weights.granularity.group="
UNTIE = "--set model.tie-policy=untie --set scheme.head.format=int8"

# recipe, model, words of the command line, containers
RECIPES = [
    ("4 bits symmetric", "tiny-llama", f"--algo rtn --set scheme.{GROUP}32", "gptq,gptq-v2,awq"),
    ("4 bits affine", "tiny-llama", f"--algo rtn --set scheme.weights.symmetric=false --set scheme.{GROUP}32", "gptq-v2,awq"),
    ("order of activity", "tiny-llama", f"--algo gptq --set gptq.act-order=group --set scheme.{GROUP}32", "gptq,gptq-v2"),
    ("2 bits affine", "tiny-llama", f"--algo rtn --set scheme.weights.symmetric=false --set scheme.{GROUP}16", "gptq-v2"),
    ("3 bits", "tiny-llama", f"--algo rtn --set scheme.{GROUP}32", "gptq"),
    ("8 bits per channel", "tiny-llama", "--algo rtn", "gptq"),
    ("layers kept in every block", "tiny-llama", 'match = "mlp.down"\nweights = "keep"', "gptq,awq"),
    ("a layer of one block kept", "tiny-llama", 'match = "blocks.2.mlp.down"\nweights = "keep"', "gptq,awq"),
    ("two widths", "tiny-llama", 'match = "blocks.1.attn.(q|k|v)"\nweights = { format = "int8" }', "gptq"),
    ("the head too", "tiny-llama", f"--algo rtn {UNTIE} --set scheme.{GROUP}32", "gptq"),
    ("GPT-2", "tiny-gpt2", f"--algo rtn --set scheme.{GROUP}32", "gptq"),
]


def quantize(qfw, out, name, model, words, containers):
    """Runs the program."""
    bits = name[0] if name[0].isdigit() else "4"
    command = [qfw, "apply", ASSETS / model, "--format", f"qfw,{containers}", "-o", out]
    if words.startswith("--"):
        text = ASSETS / "text" / "calibration.txt"
        command += ["--data", text, "--set", "calibration.samples=8", "--set", "calibration.seq-len=64"]
        command += ["--set", f"scheme.weights.format=int{bits}", *words.split()]
    else:
        file = out.with_suffix(".toml")
        scheme = '[scheme.weights]\nformat = "int4"\ngranularity = { group = 64 }\n'
        file.write_text(f'schema = 1\n{scheme}[[pass]]\nalgo = "rtn"\n[[override]]\n{words}\n')
        command += ["--config", file]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def by_transformers(path):
    return AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float32)


def by_gptqmodel(path):
    from gptqmodel import BACKEND, GPTQModel

    backend = BACKEND.TORCH_AWQ if path.name == "awq" else BACKEND.TORCH
    return GPTQModel.load(str(path), device="cpu", backend=backend).model


def main():
    qfw, work = sys.argv[1], Path(sys.argv[2])
    ids = (torch.arange(40) * 7 % 1000)[None]
    lines = []
    for i, (name, model, words, containers) in enumerate(RECIPES):
        out = work / f"{i}"
        quantize(qfw, out, name, model, words, containers)
        with torch.no_grad():
            expected = dense(out / "qfw")(ids).logits
        for container in containers.split(","):
            found = []
            for load in (by_transformers, by_gptqmodel):
                try:
                    with torch.no_grad():
                        logits = load(out / container)(ids).logits.float()
                    found.append(f"{float((logits - expected).abs().max() / expected.abs().max()):.0e}")
                except Exception as e:  # whatever a loader does is the result
                    found.append(f"{type(e).__name__}: {str(e).splitlines()[0][:60]}")
            lines.append(f"| {name} | `{container}` | {found[0]} | {found[1]} |")
    print("\n".join(["| | container | transformers | GPTQModel |", "|---|---|---|---|", *lines]))


main()
