"""GPTQModel alone, with its PyTorch kernels, as a driver of `cargo xtask interop`.

It computes in f16, the more exact of the two types that its kernels have.
"""

from protocol import serve  # isort: skip

from importlib.metadata import version

import torch
from gptqmodel import BACKEND, GPTQModel


def run(job, windows):
    backend = BACKEND.TORCH_AWQ if job["container"] == "awq" else BACKEND.TORCH
    model = GPTQModel.load(job["checkpoint"], device="cpu", backend=backend, dtype=torch.float16).model
    with torch.no_grad():
        return [(model(torch.tensor(ids)[None]).logits[0].float().numpy(), None) for ids in windows]


serve(f"gptqmodel {version('gptqmodel')}, transformers {version('transformers')}, torch {version('torch').split('+')[0]}", run)
