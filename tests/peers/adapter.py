"""What transformers and PEFT make of branches in an adapter beside a container.

    pip install transformers==5.17.0 compressed-tensors==0.19.0 peft==0.21.2      (and GPTQModel, for `gptq` and `awq`)
    python adapter.py QFW DIR [FORMAT...]

QFW is the program, DIR an empty directory, FORMAT what to load (all, if none). Each recipe quantizes a model with branches into the native form,
whose logits `cargo xtask logits` computes, and into a container with an adapter beside it, which transformers loads and PEFT puts over it. A line
is a recipe and, over the first windows of the text,

* cosine: of those logits and ours, the smallest at one position;
* largest: the largest difference of a logit, over the largest logit;
* without: the same without the adapter, to show that it is what is tested;

or how loading failed. What is further off than the limits below is marked, and the script fails.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "cli" / "assets"
COSINE, LARGEST = 0.99999, 2e-3
W = "scheme.weights."
COARSE = f"{W}format=int4 {W}granularity.group=64 svdquant.rank=16"

# model, format, words of the command line; a word without a dash is a setting
RECIPES = [
    ("tiny-llama", "safetensors-float", COARSE),
    ("tiny-gpt2", "safetensors-float", COARSE),
    ("tiny-llama", "safetensors-float", f"{COARSE} svdquant.shared=true"),
    ("tiny-llama", "safetensors-float", f"{W}format=int2 {W}granularity.group=32 svdquant.rank=100 svdquant.dtype=float32"),
    ("tiny-llama", "compressed-tensors", COARSE),
    ("tiny-llama", "compressed-tensors", f"{COARSE} svdquant.shared=true"),
    ("tiny-llama", "compressed-tensors", f"--algo quarot,svdquant,gptq {COARSE}"),
    ("tiny-llama", "gptq", COARSE),
    ("tiny-llama", "awq", COARSE),
]


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")


def far(model, ours, count):
    """The smallest cosine, and the largest difference over the largest logit."""
    cosine, largest = 1.0, 0.0
    for w in range(count):
        with torch.no_grad():
            theirs = model(torch.from_numpy(ours[f"ids.{w}"])[None]).logits[0].double().numpy()
        a = ours[f"logits.{w}"].astype(np.float64)
        cosine = min(cosine, ((a * theirs).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(theirs, axis=-1)).min())
        largest = max(largest, np.abs(a - theirs).max() / np.abs(a).max())
    return float(cosine), float(largest)


def main():
    qfw, work, *formats = sys.argv[1:]
    qfw, work, count, failed = Path(qfw).resolve(), Path(work).resolve(), 4, False
    print("| | container | cosine | largest | without |", "|---|---|---|---|---|", sep="\n")
    for i, (name, form, words) in enumerate(RECIPES):
        if formats and form not in formats:
            continue
        command = words if words.startswith("--") else f"--algo svdquant,rtn {words}"
        command = [part for w in command.split() for part in (["--set", w] if "=" in w else [w])]
        data = ["--data", ASSETS / "text" / "calibration.txt", "--set", "calibration.samples=8", "--set", "calibration.seq-len=64"]
        run(qfw, "apply", ASSETS / name, "--format", f"qfw,{form}", "-o", work / str(i), *data, *command)
        stored, out = work / f"{i}.logits", work / str(i) / form
        windows = ["--seq-len", 128, "--windows", count, "-o", stored]
        run("cargo", "xtask", "logits", work / str(i) / "qfw", "--data", ASSETS / "text" / "evaluation.txt", *windows)
        ours = load_file(stored)
        try:
            model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, device_map="cpu").eval()
            without = far(model, ours, count)[1]
            cosine, largest = far(PeftModel.from_pretrained(model, out / "adapter").eval(), ours, count)
        except Exception as e:  # whatever a loader does is the result
            failed = True
            print(f"| {name}: {words} | {form} | {type(e).__name__}: {str(e).splitlines()[0][:120]} |", flush=True)
            continue
        bad = cosine < COSINE or largest > LARGEST or without < 10 * LARGEST
        failed |= bad
        print(f"| {name}: {words} | {form} | {cosine:.7f} | {largest:.0e} | {without:.0e} |{' TOO FAR' if bad else ''}", flush=True)
    sys.exit(failed)


main()
