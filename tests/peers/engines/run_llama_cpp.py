"""llama.cpp as llama-cpp-python carries it, as a driver of `cargo xtask interop`.

With the option `floats` it runs the same file with its weights decoded to f32 by the package `gguf`: llama.cpp rounds to 8 bits what a
product with quantized weights reads, so this tells the weights from the arithmetic. Keys and values are kept in f32.

A file holds its tokenizer too: llama.cpp has to find the same tokens in the text as we do.
"""

from protocol import serve  # isort: skip

import tempfile
from importlib.metadata import version
from pathlib import Path

from gguf_in_floats import in_floats
from llama_cpp import Llama
from tensors import load

F32 = 0  # what ggml calls it


def run(job, windows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(job["checkpoint"]) / "model.gguf"
        if job["option"] == "floats":
            path = in_floats(path, Path(folder) / "model.gguf")
        length = max(map(len, windows))
        model = Llama(str(path), n_ctx=length, n_batch=length, logits_all=True, verbose=False, n_threads=2, type_k=F32, type_v=F32)
        found = model.tokenize(Path(job["text"]).read_bytes(), add_bos=False, special=False)
        given = load(job["tokens"])["text"].tolist()
        if found != given:
            at = next((i for i, (a, b) in enumerate(zip(found, given)) if a != b), min(len(found), len(given)))
            raise ValueError(f"the tokenizer in the file finds other tokens in the text, from number {at} on")
        out = []
        for ids in windows:
            model.reset()
            model.eval(ids.tolist())
            out.append((model.scores[: len(ids)].copy(), None))
        model.close()
        return out


serve(f"llama-cpp-python {version('llama-cpp-python')}", run)
