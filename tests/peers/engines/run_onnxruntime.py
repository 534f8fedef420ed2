"""ONNX Runtime on a CPU as a driver of `cargo xtask interop`.

With the option `exact` it does not round to 8 bits what a product reads where it fuses weights behind `DequantizeLinear`; by itself it does.
Every file is seen by `onnx.checker` first.
"""

from protocol import serve  # isort: skip

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def run(job, windows):
    path = str(Path(job["checkpoint"]) / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    if job["option"] == "exact":
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs() if i.name.startswith("past_key_values")
    }
    for ids in windows:
        n = np.arange(len(ids))[None]
        feed = {"input_ids": ids[None], "attention_mask": np.ones_like(n), "position_ids": n, **past}
        yield session.run(["logits"], feed)[0][0], None


serve(f"onnxruntime {ort.__version__}", run)
