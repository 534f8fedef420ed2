"""What transformers makes of the container `compressed-tensors`, against the same weights in floats.

    pip install transformers==5.23.0 compressed-tensors==0.20.0
    python ct.py QFW DIR

QFW is the program, DIR an empty directory. Each recipe quantizes `tiny-llama`, or the same as another family with numbers drawn at random for
what that adds, into the native form, which is decoded here by its description, and into the container. A line is a recipe and, for each
family, the largest difference of a logit over the largest logit, or how loading failed. Computed in f32, floats of four bits in bf16; where inputs are
rounded the float model does not round them, so that a difference is what belongs there.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from native import dense  # noqa: E402

ASSETS = Path(__file__).parents[2] / "cli" / "assets"
W = "scheme.weights."
FAMILIES = {
    "llama": ({}, {}),
    "mistral": ({"model_type": "mistral", "sliding_window": None}, {}),
    "qwen2": ({"model_type": "qwen2"}, {"q_proj.bias": 128, "k_proj.bias": 64, "v_proj.bias": 64}),
    "qwen3": ({"model_type": "qwen3"}, {"q_norm.weight": 32, "k_norm.weight": 32}),
}
RECIPES = [
    ("4 bits", f"--algo rtn --set {W}format=int4 --set {W}granularity.group=32", torch.float32),
    ("4 bits affine", f"--algo rtn --set {W}format=uint4 --set {W}symmetric=false --set {W}granularity.group=32", torch.float32),
    ("8 bits", f"--algo rtn --set {W}format=int8 --set {W}granularity.group=32", torch.float32),
    ("8 bits, inputs too", "--preset w8a8", torch.float32),
    ("fp8, inputs too", "--preset fp8-dynamic", torch.float32),
    ("nvfp4", "--preset nvfp4", torch.bfloat16),
    ("mxfp4", "--preset mxfp4", torch.bfloat16),
]


def derived(family, path):
    """Writes `tiny-llama` as a family."""
    path.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).write_bytes((ASSETS / "tiny-llama" / file).read_bytes())
    changes, added = FAMILIES[family]
    config = {**json.loads((ASSETS / "tiny-llama" / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps(config))
    state, generator = load_file(ASSETS / "tiny-llama" / "model.safetensors"), torch.Generator().manual_seed(0)
    for block in range(config["num_hidden_layers"]):
        for name, length in added.items():
            numbers = torch.randn(length, generator=generator) * 0.1 + (1 if "norm" in name else 0)
            state[f"model.layers.{block}.self_attn.{name}"] = numbers.to(torch.float16)
    save_file(state, path / "model.safetensors", {"format": "pt"})


def main():
    qfw, work = sys.argv[1], Path(sys.argv[2])
    ids = (torch.arange(40) * 7 % 1000)[None]
    for family in FAMILIES:
        derived(family, work / family)
    print("| |", " | ".join(FAMILIES), "|\n|---|" + "---|" * len(FAMILIES), flush=True)
    for i, (name, words, dtype) in enumerate(RECIPES):
        found = []
        for family in FAMILIES:
            out = work / f"{i}-{family}"
            data = ["--data", ASSETS / "text" / "calibration.txt", "--set", "calibration.samples=8", "--set", "calibration.seq-len=64"]
            command = [qfw, "apply", work / family, "--format", "qfw,compressed-tensors", "-o", out, *data, *words.split()]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
            with torch.no_grad():
                expected = dense(out / "qfw").to(dtype)(ids).logits.float()
                try:
                    model = AutoModelForCausalLM.from_pretrained(out / "compressed-tensors", device_map="cpu", dtype=dtype)
                    logits = model(ids).logits.float()
                    found.append(f"{float((logits - expected).abs().max() / expected.abs().max()):.0e}")
                except Exception as e:  # whatever a loader does is the result
                    found.append(f"{type(e).__name__}: {str(e).splitlines()[0][:60]}")
        print(f"| {name} | {' | '.join(found)} |", flush=True)


main()
