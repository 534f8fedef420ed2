"""transformers, by itself and with what it loads quantized checkpoints with, as a driver of `cargo xtask interop`.

Computes in f32, and in bf16 where it is told to: compressed-tensors decompresses floats of four bits to that type whatever the model is.
Where an adapter lies beside a checkpoint, PEFT puts it over the model, whose weights have to be there for that: compressed-tensors has to
decompress them on loading.
"""

from protocol import serve  # isort: skip

from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def versions():
    from importlib.metadata import PackageNotFoundError, version

    for package in ("transformers", "compressed-tensors", "gptqmodel", "peft", "torch"):
        try:
            yield f"{package} {version(package).split('+')[0]}"
        except PackageNotFoundError:
            pass


def run(job, windows):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["numbers"]]
    adapter = Path(job["checkpoint"]) / "adapter"
    how = {}
    if adapter.is_dir() and job["container"].startswith("compressed-tensors"):
        how["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    # What is missing it fills with random numbers, and goes on: the logits show it.
    model = AutoModelForCausalLM.from_pretrained(job["checkpoint"], device_map="cpu", dtype=dtype, **how)
    if adapter.is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return [(model(torch.tensor(ids)[None]).logits[0].float().numpy(), None) for ids in windows]


transformers.logging.set_verbosity_error()
serve(", ".join(versions()), run)
