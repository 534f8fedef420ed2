"""What onnxruntime makes of the containers `onnx`, `onnx-qdq`, `onnx-qcdq` and `onnx-matmulnbits`.

    pip install onnxruntime==1.31.1 onnx==1.23.2 numpy
    python onnx.py QFW DIR [MODEL]
    python onnx.py QFW DIR --few

QFW is the program, DIR an empty directory, MODEL a checkpoint that is quantized too; `--few` takes the recipes of a run that is to be short.
Each recipe quantizes a model into the native form, whose logits `cargo xtask logits` computes, and into ONNX. `onnx.checker` sees every file.
A line is a recipe, the operators that hold its weights, and, over the first windows of the text,

* cosine: of onnxruntime's logits and ours, the smallest at one position;
* largest: the largest difference of a logit, over the largest logit;
* perplexity: onnxruntime's over ours, less one;
* steps: the largest difference of a logit when a text is given in parts (a prefix, single tokens, a piece), with keys and values handed on, to
  the text given whole, over the largest logit;
* padded: the same for two texts of different length in one batch, padded on the left, to each alone (neither with longrope, where a text has other
  angles when it grows or stands beside a longer one);
* as loaded: the cosine with the options that onnxruntime has by itself: it rounds inputs to 8 bits where it fuses weights behind
  DequantizeLinear.

Whatever is further off than the limits below is marked, and the script fails.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]  # this file is called `onnx` as well

import numpy as np
import onnx
import onnxruntime as ort

sys.path.append(str(Path(__file__).parent / "engines"))
from tensors import load, save  # noqa: E402

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "cli" / "assets"
TEXT = ASSETS / "text" / "evaluation.txt"
LINES = ASSETS / "text" / "calibration.txt"

# Limits: of weights alone, and where activations are rounded, so that a difference in the last bit may be a step.
COSINE, LARGEST, PERPLEXITY = 0.9999, 5e-3, 3e-3
COSINE_ROUNDED, LARGEST_ROUNDED = 0.99, 0.1

W = "scheme.weights."
AFFINE = f"{W}symmetric=false"
STATIC = "scheme.inputs.format=int8 scheme.inputs.timing=static scheme.inputs.granularity=tensor"
KV = "scheme.keys.format=int8 scheme.keys.timing=static scheme.keys.granularity=tensor scheme.values.format=int8 scheme.values.timing=static scheme.values.granularity=tensor"
UNTIED = "model.tie-policy=untie scheme.head.format=int8 scheme.embed.format=int4 scheme.head.granularity.group=32 scheme.embed.granularity.group=32"
G32 = f"{W}granularity.group=32"

# `tiny-llama` as another family: what is changed in its configuration, and for each added tensor of a block its length
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64, "short_factor": [1.0] * 16, "long_factor": [1.0 + i / 8 for i in range(16)]}
FAMILIES = {
    "qwen2": ({"model_type": "qwen2"}, {"q_proj.bias": 128, "k_proj.bias": 64, "v_proj.bias": 64}),
    "qwen3": ({"model_type": "qwen3"}, {"q_norm.weight": 32, "k_norm.weight": 32}),
    "mistral": ({"model_type": "mistral", "sliding_window": None}, {}),
    "mistral, window of 20": ({"model_type": "mistral", "sliding_window": 20}, {}),
    "llama with biases": ({"attention_bias": True}, {"q_proj.bias": 128, "k_proj.bias": 64, "v_proj.bias": 64, "o_proj.bias": 128}),
    "llama 3": ({"rope_scaling": LLAMA3}, {}),
    "linear": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {}),
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {}),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, {}),
    "longrope": ({"rope_scaling": LONG}, {}),
}

# recipe, model, format, words of the command line; a word without a dash is a setting
RECIPES = [
    ("4 bits", "tiny-llama", "onnx", f"{W}format=int4 {G32}"),
    ("4 bits", "tiny-gpt2", "onnx", f"{W}format=int4 {G32}"),
    ("as qwen3, 4 bits affine", "qwen3", "onnx-qdq", f"{W}format=uint4 {AFFINE} {G32}"),
    ("6 bits clipped, inputs of 6 bits", "tiny-llama", "onnx-qcdq", f"{W}format=int6 {W}granularity=channel {STATIC.replace('int8', 'int6')}"),
    ("floats", "tiny-llama", "onnx", "harness.no-quantize=true"),
    ("4 bits affine", "tiny-llama", "onnx", f"{W}format=uint4 {AFFINE} {G32}"),
    ("4 bits, float zero points", "tiny-llama", "onnx", f"{W}format=uint4 {AFFINE} {W}zero-point=float {G32}"),
    ("2 bits affine", "tiny-llama", "onnx", f"{W}format=uint2 {AFFINE} {W}granularity.group=16"),
    ("3 bits", "tiny-llama", "onnx", f"{W}format=int3 {G32}"),
    ("8 bits", "tiny-llama", "onnx", f"{W}format=int8 {G32}"),
    ("8 bits, per channel", "tiny-llama", "onnx", f"{W}format=int8 {W}granularity=channel"),
    ("4 bits, groups of 96", "tiny-llama", "onnx", f"{W}format=int4 {W}granularity.group=96"),
    ("fp8", "tiny-llama", "onnx", f"{W}format=fp8 {W}granularity=channel"),
    ("4 bits", "tiny-llama", "onnx-qdq", f"{W}format=int4 {G32}"),
    ("4 bits, per channel", "tiny-llama", "onnx-qdq", f"{W}format=int4 {W}granularity=channel"),
    ("8 bits affine, per tensor", "tiny-llama", "onnx-qdq", f"{W}format=uint8 {AFFINE} {W}granularity=tensor"),
    ("fp8 in blocks", "tiny-llama", "onnx-qdq", f"{W}format=fp8 {W}granularity.block=[64,64]"),
    ("8 bits", "tiny-gpt2", "onnx-qdq", f"{W}format=int8 {W}granularity=channel"),
    ("4 bits affine", "tiny-gpt2", "onnx-matmulnbits", f"{W}format=uint4 {AFFINE} {G32}"),
    ("4 bits", "tiny-llama", "onnx-qcdq", f"{W}format=int4 {W}granularity=channel"),
    ("5 bits affine, in groups", "tiny-llama", "onnx-qcdq", f"{W}format=uint5 {AFFINE} {G32}"),
    ("8 bits, fixed inputs of 8 bits", "tiny-llama", "onnx", f"{W}format=int8 {W}granularity=channel {STATIC}"),
    ("8 bits, fixed inputs of 8 bits", "tiny-gpt2", "onnx-qdq", f"{W}format=int8 {W}granularity=channel {STATIC}"),
    ("4 bits, fixed keys and values of 8 bits", "tiny-llama", "onnx", f"{W}format=int4 {G32} {KV}"),
    ("fp8, fixed inputs of fp8", "tiny-llama", "onnx", f"{W}format=fp8 {W}granularity=tensor {STATIC.replace('int8', 'fp8')}"),
    ("8 bits, inputs of 8 bits by token", "tiny-llama", "onnx", f"{W}format=int8 {W}granularity=channel scheme.inputs.format=int8"),
    ("8 bits, affine inputs of 8 bits by token", "tiny-gpt2", "onnx", f"{W}format=int8 {W}granularity=channel scheme.inputs.format=uint8 scheme.inputs.symmetric=false"),
    ("fp8, inputs of fp8 by token", "tiny-llama", "onnx", f"{W}format=fp8 {W}granularity=channel scheme.inputs.format=fp8"),
    ("4 bits, inputs of 8 bits in groups", "tiny-llama", "onnx", f"{W}format=int4 {G32} scheme.inputs.format=int8 scheme.inputs.granularity.group=32"),
    ("4 bits, keys and values of 8 bits by head", "tiny-llama", "onnx", "--preset w4a16kv8"),
    ("embedding and head too", "tiny-llama", "onnx", f"{W}format=int4 {G32} {UNTIED}"),
    ("an embedding in fp8", "tiny-llama", "onnx", f"{W}format=int4 {G32} {UNTIED.replace('embed.format=int4', 'embed.format=fp8')}"),
    ("4 bits and branches", "tiny-llama", "onnx", f"--algo svdquant,rtn {W}format=int4 {G32}"),
    ("4 bits, rotated while it runs", "tiny-llama", "onnx", f'--algo quarot,rtn quarot.rotations=["r1","r2","r3","r4"] {W}format=int4 {G32}'),
    ("4 bits, multiplied behind GELU", "tiny-gpt2", "onnx", f"--algo smoothquant,rtn smoothquant.stand-alone=true {W}format=int4 {G32}"),
    ("8 bits, fixed inputs of 8 bits, multiplied behind GELU", "tiny-gpt2", "onnx-qdq", f"--algo smoothquant,rtn smoothquant.stand-alone=true {W}format=int8 {W}granularity=channel {STATIC}"),
    *((f"as {family}, 4 bits", family, "onnx", f"{W}format=int4 {G32}") for family in FAMILIES),
    ("as opt, 4 bits", "opt", "onnx", f"{W}format=int4 {G32}"),
    ("4 bits", "MODEL", "onnx", f"{W}format=int4 {G32}"),
    ("4 bits affine", "MODEL", "onnx-qdq", f"{W}format=uint4 {AFFINE} {W}granularity.group=64"),
    ("8 bits, per channel", "MODEL", "onnx-qdq", f"{W}format=int8 {W}granularity=channel"),
]
FEW = 4  # recipes of a short run


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def derived(family, path):
    """Writes a tiny model as another family, with numbers drawn at random for what that adds."""
    path.mkdir()
    base = ASSETS / ("tiny-gpt2" if family == "opt" else "tiny-llama")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).write_bytes((base / file).read_bytes())
    state, random = load(base / "model.safetensors"), np.random.default_rng(0)
    config = json.loads((base / "config.json").read_text())
    if family == "opt":
        config, state = opt(config, state)
    else:
        changes, added = FAMILIES[family]
        config.update(changes)
        for block in range(config["num_hidden_layers"]):
            for name, length in added.items():
                state[f"model.layers.{block}.self_attn.{name}"] = (random.normal(0, 0.3, length) + ("norm" in name)).astype(np.float16)
    (path / "config.json").write_text(json.dumps(config))
    save(state, path / "model.safetensors")
    return path


def opt(config, state):
    """GPT-2's tensors under OPT's names: the same function but for the activation."""
    names = {"ln_1": "self_attn_layer_norm", "ln_2": "final_layer_norm", "attn.c_proj": "self_attn.out_proj", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"}
    state = {k.removeprefix("transformer."): v for k, v in state.items()}
    p, out = "model.decoder.", {}
    out[f"{p}embed_tokens.weight"] = state["wte.weight"]
    out[f"{p}embed_positions.weight"] = np.concatenate([np.zeros_like(state["wpe.weight"][:2]), state["wpe.weight"]])
    for part in ("weight", "bias"):
        out[f"{p}final_layer_norm.{part}"] = state[f"ln_f.{part}"]
        for b in range(config["n_layer"]):
            for ours, theirs in names.items():
                out[f"{p}layers.{b}.{theirs}.{part}"] = state[f"h.{b}.{ours}.{part}"].T
            for name, third in zip("qkv", np.split(state[f"h.{b}.attn.c_attn.{part}"].T, 3)):
                out[f"{p}layers.{b}.self_attn.{name}_proj.{part}"] = third
    keys = {"vocab_size": "vocab_size", "hidden_size": "n_embd", "ffn_dim": "n_inner", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    made = {ours: config[theirs] for ours, theirs in keys.items()}
    return {"model_type": "opt", "max_position_embeddings": config["n_positions"], "activation_function": "relu", **made}, out


class Session:
    """A model in onnxruntime; `exact` keeps it from rounding what the graph does not round."""

    def __init__(self, path, exact=True):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3
        if exact:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.past = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values")]

    def empty(self, batch):
        return {i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for i in self.past}

    def run(self, ids, mask, past):
        """Logits of `ids`, and the keys and values for the next call."""
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        names = [o.name for o in self.session.get_outputs()]
        out = dict(zip(names, self.session.run(names, feed)))
        logits = out.pop("logits")
        return logits, {k.replace("present", "past_key_values"): v for k, v in out.items()}

    def whole(self, ids):
        return self.run(ids[None], np.ones((1, len(ids)), np.int64), self.empty(1))[0][0]

    def in_parts(self, ids):
        """A prefix, single tokens, then the rest."""
        past, parts, cut = self.empty(1), [], [0, 7, *range(8, 24), len(ids)]
        for a, b in zip(cut, cut[1:]):
            logits, past = self.run(ids[None, a:b], np.ones((1, b), np.int64), past)
            parts.append(logits[0])
        return np.concatenate(parts)

    def padded(self, ids, short):
        """Two texts in one batch, the second of them shorter."""
        n, m = len(ids), len(short)
        both = np.stack([ids, np.concatenate([np.zeros(n - m, np.int64), short])])
        mask = np.ones((2, n), np.int64)
        mask[1, : n - m] = 0
        logits, _ = self.run(both, mask, self.empty(2))
        return logits[0], logits[1, n - m :]


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def largest(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


def loss(ids, logits):
    scores = logits.astype(np.float64)
    top = scores.max(-1, keepdims=True)
    log = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
    return -log[np.arange(len(ids) - 1), ids[1:]].mean()


def held_by(path):
    """The operators that hold weights, and how many of each."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    count = Counter(n.op_type for n in nodes)
    return " ".join(f"{op} {count[op]}" for op in ("MatMulNBits", "QuantizeLinear", "Clip", "DequantizeLinear") if count[op])


def main():
    few = "--few" in sys.argv
    qfw, work, *own = [a for a in sys.argv[1:] if a != "--few"]
    qfw, work = Path(qfw).resolve(), Path(work).resolve()
    print("| | format | in the file | cosine | largest | perplexity | steps | padded | as loaded |", "|---|---|---|---|---|---|---|---|---|", sep="\n")
    failed = False
    for i, (name, model, form, words) in enumerate(RECIPES[:FEW] if few else RECIPES):
        if model == "MODEL" and not own:
            continue
        length, count = (512, 3) if model == "MODEL" else (128, 6)
        path = own[0] if model == "MODEL" else ASSETS / model
        if model in FAMILIES or model == "opt":
            path = derived(model, work / f"{i}.source")
        words = words if words.startswith("--") else f"--algo rtn {words}"
        command = [part for w in words.split() for part in (["--set", w] if "=" in w else [w])]
        data = ["--data", LINES, "--set", "calibration.samples=8", "--set", "calibration.seq-len=64"]
        run(qfw, "apply", path, "--format", f"qfw,{form}", "-o", work / f"{i}", *data, *command)
        file, stored = work / f"{i}" / form / "model.onnx", work / f"{i}.logits"
        onnx.checker.check_model(str(file), full_check=True)
        run("cargo", "xtask", "logits", work / f"{i}" / "qfw", "--data", TEXT, "--seq-len", length, "--windows", count, "-o", stored)
        ours = load(stored)
        exact, loaded = Session(file), Session(file, exact=False)
        measured = []
        for w in range(count):
            ids, logits = ours[f"ids.{w}"], ours[f"logits.{w}"]
            whole = exact.whole(ids)
            measured.append((cosine(whole, logits), largest(whole, logits), loss(ids, whole), loss(ids, logits), cosine(loaded.whole(ids), logits)))
        each = list(zip(*measured))
        perplexity = np.exp(np.mean(each[2]) - np.mean(each[3])) - 1
        ids, short = ours["ids.0"], ours["ids.1"][: length // 3]
        steps = largest(exact.in_parts(ids), exact.whole(ids))
        a, b = exact.padded(ids, short)
        padded = max(largest(a, exact.whole(ids)), largest(b, exact.whole(short)))
        if model == "longrope":
            steps = padded = float("nan")
        far, off = (COSINE_ROUNDED, LARGEST_ROUNDED) if "fixed" in name or "inputs" in name or "keys" in name else (COSINE, LARGEST)
        bad = min(each[0]) < far or max(each[1]) > off or abs(perplexity) > PERPLEXITY or steps > off or padded > off
        failed |= bool(bad)
        shown = Path(own[0]).name if model == "MODEL" else model if (ASSETS / model).is_dir() else "tiny-gpt2" if model == "opt" else "tiny-llama"
        numbers = f"{min(each[0]):.7f} | {max(each[1]):.0e} | {perplexity:+.0e} | {steps:.0e} | {padded:.0e} | {min(each[4]):.5f}"
        print(f"| {shown}: {name} | {form} | {held_by(file)} | {numbers} |{' TOO FAR' if bad else ''}", flush=True)
    sys.exit(failed)


main()
