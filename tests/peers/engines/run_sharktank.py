"""sharktank on a CPU as a driver of `cargo xtask interop`: its paged language model in PyTorch, of which it compiles products of blocks.

As it comes, it rounds what a layer reads, and multiplies with floats; with the option `integers` it multiplies codes where both sides have
some.
"""

from protocol import serve  # isort: skip

import importlib.metadata
from pathlib import Path

import torch
from sharktank.layers.configs import LlamaHParams, LlamaModelConfig
from sharktank.models.llm import PagedLlmModelV1
from sharktank.types import Dataset

# Positions of a page of the cache.
PAGE = 32


def run(job, windows):
    name = "model.gguf" if job["container"] == "gguf" else "dataset.irpa"
    dataset = Dataset.load(Path(job["checkpoint"]) / name, mmap=False)
    parameters = LlamaHParams.from_gguf_props(dataset.properties)
    config = LlamaModelConfig(
        hp=parameters,
        block_seq_stride=PAGE,
        activation_dtype=torch.float32,
        attention_dtype=torch.float32,
        kv_cache_dtype=torch.float32,
        fake_quant=job["option"] != "integers",
    )
    model = PagedLlmModelV1(dataset.root_theta, config)
    for ids in windows:
        pages = -(-len(ids) // PAGE)
        tokens = torch.zeros(1, pages * PAGE, dtype=torch.int64)
        tokens[0, : len(ids)] = torch.from_numpy(ids.copy())
        with torch.no_grad():
            logits = model.prefill(
                tokens,
                seq_lens=torch.tensor([len(ids)]),
                seq_block_ids=torch.arange(1, pages + 1)[None],
                cache_state=model.cache.allocate(pages + 1),
            )
        yield logits[0, : len(ids)].float().numpy(), None


serve(f"sharktank {importlib.metadata.version('sharktank')}, torch {torch.__version__.split('+')[0]}", run)
