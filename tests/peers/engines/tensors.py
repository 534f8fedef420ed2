"""Safetensors files of types that numpy has, with nothing but numpy."""

import json
from pathlib import Path

import numpy as np

KINDS = {"F16": np.float16, "F32": np.float32, "I64": np.int64}


def load(path):
    """The tensors of a safetensors file, of types that numpy has."""
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {k: np.frombuffer(body[slice(*v["data_offsets"])], KINDS[v["dtype"]]).reshape(v["shape"]) for k, v in header.items()}


def save(state, path):
    names = {np.dtype(v): k for k, v in KINDS.items()}
    header, offset = {}, 0
    for k, v in state.items():
        header[k] = {"dtype": names[v.dtype], "shape": v.shape, "data_offsets": [offset, offset + v.nbytes]}
        offset += v.nbytes
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(np.ascontiguousarray(v).tobytes() for v in state.values()))
