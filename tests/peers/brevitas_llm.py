"""Brevitas' side of `cargo xtask compare --method w4a4-brevitas`: its own program for language models, on the windows it is given.

    python brevitas_llm.py MODEL IDS EVAL SEQ_LEN MAX_WINDOWS

int4 weights per channel and int4 inputs per token, rotated by random Hadamard matrices that are merged into the weights (R1, R2), rounded
by GPTQ block by block with columns ordered by activation. IDS is a safetensors file with `input_ids` [samples, length]; EVAL one of token
ids, of which the first MAX_WINDOWS windows of SEQ_LEN tokens are scored, each by itself; `-` scores nothing. The program writes no
checkpoint that holds what it simulates, so the losses are of the simulation. The last line printed is one JSON object; its times cover
quantization, from the loaded model on.

The program takes data by name of a public set, scores half of each window and sends blocks to a GPU by name: these three are replaced.
"""

import json
import resource
import sys
import time

import torch
from safetensors.torch import load_file

# A script beside this one has the name of a package that Brevitas asks for, and Python looks beside the script first.
sys.path.pop(0)
import brevitas  # noqa: E402
import brevitas_examples.llm.llm_quant.gpxq as gpxq  # noqa: E402
import brevitas_examples.llm.main as program  # noqa: E402
from brevitas_examples.llm.llm_args import create_args_parser  # noqa: E402

OPTIONS = [
    *("--dtype", "float32", "--eval", "--gptq", "--gpxq-act-order", "--gpxq-block-name", "model.layers"),
    *("--weight-bit-width", "4", "--weight-quant-granularity", "per_channel", "--weight-quant-type", "sym"),
    *("--input-bit-width", "4", "--input-quant-granularity", "per_row", "--input-quant-type", "sym"),
    *("--weight-param-method", "stats", "--input-param-method", "stats", "--input-scale-type", "dynamic"),
    *("--replace-rmsnorm", "--rotation", "fused_no_fx", "--rotation-sdpa-regions"),
]


class Scores:
    """In place of the program's perplexity, which it asks for before and after quantization."""

    def __init__(self, windows):
        self.windows = windows
        self.losses = None
        self.begun = None

    def __call__(self, model, *_, **__):
        if self.begun is None:
            self.begun = (time.monotonic(), time.process_time())
            return torch.tensor(0.0)
        self.took = (time.monotonic() - self.begun[0], time.process_time() - self.begun[1])
        with torch.no_grad():
            self.losses = [self.loss(model, window[None]) for window in self.windows]
        return torch.tensor(0.0)

    @staticmethod
    def loss(model, ids):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
        return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item()


def scored(path, length, count):
    """The first windows of a file of token ids; none of `-`."""
    if path == "-":
        return []
    (ids,) = load_file(path).values()
    ids = ids.long().flatten()
    count = min(count, len(ids) // length)
    return list(ids[: count * length].reshape(count, length))


def main():
    model, ids_path, eval_path, length, count = sys.argv[1:]
    ids = load_file(ids_path)["input_ids"].long()
    windows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    scores = Scores(scored(eval_path, int(length), int(count)))
    on_device = gpxq.send_to_device
    gpxq.send_to_device = lambda value, device, *rest, **more: on_device(value, "cpu" if device == "cuda" else device, *rest, **more)
    program.get_dataset_for_model = lambda **_: windows
    program.llm_collate = lambda **_: lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    program.compute_perplexity = scores
    size = ["--nsamples", str(len(ids)), "--seqlen", str(ids.shape[1])]
    args, rest = create_args_parser().parse_known_args(["--model", model, *OPTIONS, *size])
    program.quantize_llm(args, rest)
    wall, cpu = scores.took
    print(
        json.dumps(
            {
                "peer": f"brevitas {brevitas.__version__}, torch {torch.__version__.split('+')[0]}",
                "wall_seconds": wall,
                "cpu_seconds": cpu,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "windows_nll": scores.losses,
            }
        )
    )


main()
