"""AutoRound's side of a comparison with `learned-round`: the same windows, steps and scheme, and what it took.

    python auto_round.py MODEL IDS OUT BITS GROUP ITERS BATCH

Symmetric int weights of BITS in groups of GROUP input channels, everything but the head; ITERS steps of BATCH windows per block, and the
library's defaults otherwise. IDS is a safetensors file with `input_ids` [samples, length]. OUT receives the model with the weights that the
codes stand for, in the model's own type. The last line printed is one JSON object; its times cover the quantization alone, not imports,
loading or saving.
"""

import json
import resource
import sys
import time

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# This script has the library's name, and Python looks beside the script first.
sys.path.pop(0)
import auto_round  # noqa: E402


def main():
    model_path, ids_path, out, bits, group, iters, batch = sys.argv[1:]
    ids = load_file(ids_path)["input_ids"].long()
    windows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    rounding = auto_round.AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(model_path),
        scheme=auto_round.schemes.QuantizationScheme(bits=int(bits), group_size=int(group), sym=True),
        dataset=windows,
        nsamples=len(windows),
        seqlen=ids.shape[1],
        iters=int(iters),
        batch_size=int(batch),
        device_map="cpu",
    )
    cpu, wall = time.process_time(), time.monotonic()
    rounding.quantize()
    took = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.monotonic() - wall}
    rounding.save_quantized(out, format="fake")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peer = f"auto-round {auto_round.__version__}, torch {torch.__version__.split('+')[0]}"
    print(json.dumps({"peer": peer, "peak_rss_bytes": peak, **took}))


if __name__ == "__main__":
    main()
