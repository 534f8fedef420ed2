"""How `cargo xtask interop` talks to an engine: one driver is one process, which answers a line for each line it is given.

The driver says first what runs, as `{"engine": "transformers 5.23.0, torch 2.13.0", "date": "2026-01-01"}`. Each line that it reads is a job,

    {"checkpoint": "DIR", "container": "gguf", "option": null, "numbers": "f32", "vocabulary": 1024,
     "tokens": "FILE", "text": "FILE", "out": "FILE"}

and each line that it writes is what became of it: `{"done": true}` once OUT is there, or `{"refused": "why"}` with the engine's own words,
and `"last": true` if it answers no more. Where the engine dies instead, the process does. `cargo xtask interop` then starts another.

`option` is one of the driver's own, `numbers` what to compute in where that can be chosen. TOKENS holds `ids.I`, int64 `[T]`, for each
window I, and `text`, int64, all ids of the text, without the token that begins a window. OUT holds `logits.I`, float32
`[P, vocabulary]`, or with a constant added to every number of a row, such as the logarithms of probabilities; and `positions.I`, int64
`[P]`, where P is less than T. Both are safetensors files. Whatever an engine prints goes to standard error.
"""

import json
import os
import sys
import time

import numpy as np
from tensors import load, save

# What engines print, on being imported too, is no answer: so this module comes before them.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def why(error):
    """An exception in one line: its type, and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def serve(engine, run, ends_with_refusal=False):
    """Answers jobs until there are no more, or the first refusal, where an engine that has failed cannot go on.

    `run(job, windows)` gives for each of the windows the logits at its positions, [P, vocabulary], and which positions those are, or None
    for all; what it raises is the engine's refusal.
    """

    def say(what):
        ANSWERS.write(json.dumps(what) + "\n")
        ANSWERS.flush()

    say({"engine": engine, "date": time.strftime("%Y-%m-%d", time.gmtime())})
    for line in sys.stdin:
        job = json.loads(line)
        tokens = load(job["tokens"])
        windows = [tokens[f"ids.{i}"] for i in range(len(tokens) - 1)]
        try:
            out = {}
            for i, (logits, positions) in enumerate(run(job, windows)):
                out[f"logits.{i}"] = np.ascontiguousarray(logits, np.float32)
                if positions is not None:
                    out[f"positions.{i}"] = np.array(positions, np.int64)
            save(out, job["out"])
            say({"done": True})
        except Exception as error:  # whatever an engine does is the result
            say({"refused": why(error), "last": ends_with_refusal})
            if ends_with_refusal:
                return
