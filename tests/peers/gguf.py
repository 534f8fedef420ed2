"""What llama.cpp and its Python package make of the container `gguf`.

    pip install gguf==0.19.0 safetensors numpy llama-cpp-python==0.3.36
    python gguf.py QFW DIR [MODEL]

QFW is the program, DIR an empty directory, MODEL a checkpoint that is quantized too. Each recipe quantizes a model into the native form, which
is decoded here by its description, and into GGUF. A line is a recipe, the types in the file, and

* values: the largest difference of a weight that the package `gguf` decodes, over the largest weight of its tensor;
* twin: what llama.cpp's perplexity of a file with those weights in f32 is over that of `qfw eval`, less one. Text becomes ids by llama.cpp's
  tokenizer from the keys of the file;
* file: the same of the file itself, whose products llama.cpp computes with inputs of 8 bits;
* cosine: of the logits of the file and of its twin, the mean over positions, and the smallest at one.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]  # this file is called `gguf` as well

import gguf
import numpy as np
from llama_cpp import Llama
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ASSETS = Path(__file__).parents[2] / "cli" / "assets"
TEXT = ASSETS / "text" / "evaluation.txt"
GROUP = "weights.granularity.group="
AFFINE = "scheme.weights.symmetric=false"
UNTIED = "model.tie-policy=untie scheme.head.format=int8 scheme.embed.format=int8 scheme.head.granularity.group=32 scheme.embed.granularity.group=32"
F32 = 0  # what ggml calls it: keys and values are kept in f32, and not in f16 as they would be
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

# recipe, model, settings
# `tiny-llama` as another family: configuration, and for each added tensor of a block its length
FAMILIES = {
    "qwen2": ({"model_type": "qwen2"}, {"q_proj.bias": 128, "k_proj.bias": 64, "v_proj.bias": 64}),
    "qwen3": ({"model_type": "qwen3"}, {"q_norm.weight": 32, "k_norm.weight": 32}),
    "mistral": ({"model_type": "mistral", "sliding_window": None}, {}),
    "llama with biases": ({"attention_bias": True}, {"q_proj.bias": 128, "k_proj.bias": 64, "v_proj.bias": 64, "o_proj.bias": 128}),
    "llama 3": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, {}),
    "linear": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {}),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, {}),
    "yarn, attention": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3}}, {}),
}

RECIPES = [
    ("8 bits", "tiny-llama", f"scheme.weights.format=int8 scheme.{GROUP}32"),
    ("4 bits", "tiny-llama", f"scheme.weights.format=int4 scheme.{GROUP}32"),
    ("4 bits, groups of 128", "tiny-llama", f"scheme.weights.format=int4 scheme.{GROUP}128"),
    ("8 bits, per channel", "tiny-llama", "scheme.weights.format=int8"),
    ("4 bits affine", "tiny-llama", f"scheme.weights.format=uint4 {AFFINE} scheme.{GROUP}32"),
    ("5 bits", "tiny-llama", f"scheme.weights.format=int5 scheme.{GROUP}32"),
    ("5 bits affine", "tiny-llama", f"scheme.weights.format=uint5 {AFFINE} scheme.{GROUP}32"),
    ("mxfp4", "tiny-llama", "scheme.weights.format=mxfp4"),
    ("nvfp4", "tiny-llama", "scheme.weights.format=nvfp4"),
    ("embedding and head too", "tiny-llama", f"scheme.weights.format=int4 scheme.{GROUP}32 {UNTIED}"),
    ("GPT-2, 8 bits", "tiny-gpt2", f"scheme.weights.format=int8 scheme.{GROUP}32"),
    ("GPT-2, 4 bits affine", "tiny-gpt2", f"scheme.weights.format=uint4 {AFFINE} scheme.{GROUP}32"),
    *((f"as {family}, 4 bits", family, f"scheme.weights.format=int4 scheme.{GROUP}32") for family in FAMILIES),
    ("4 bits", "MODEL", f"scheme.weights.format=int4 scheme.{GROUP}32"),
    ("8 bits", "MODEL", f"scheme.weights.format=int8 scheme.{GROUP}32"),
]


def run(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def derived(family, path):
    """Writes `tiny-llama` as another family, with numbers drawn at random for what that adds."""
    path.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).write_bytes((ASSETS / "tiny-llama" / file).read_bytes())
    changes, added = FAMILIES[family]
    config = {**json.loads((ASSETS / "tiny-llama" / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps(config))
    state, random = load_file(ASSETS / "tiny-llama" / "model.safetensors"), np.random.default_rng(0)
    for block in range(config["num_hidden_layers"]):
        for name, length in added.items():
            state[f"model.layers.{block}.self_attn.{name}"] = (random.normal(0, 0.3, length) + ("norm" in name)).astype(np.float16)
    save_file(state, path / "model.safetensors")
    return path


def native(path):
    """The weights that a native checkpoint stands for, in f32."""
    config = json.loads((path / "config.json").read_text())
    with safe_open(path / "model.safetensors", "np") as file:
        state = {}
        for name in file.keys():
            try:
                state[name] = file.get_tensor(name)
            except TypeError:  # numpy has no bf16
                raise SystemExit(f"{name} is of a type that numpy lacks; give a model in f16 or f32")
    for entry in config["quantization_config"]["modules"]:
        name, bits, (rows, cols) = entry["module"], entry["spec"]["bits"], entry["shape"]
        packed, scale = state.pop(f"{name}.codes"), state.pop(f"{name}.scale")
        zero = state.pop(f"{name}.zero", np.zeros_like(scale))
        state.pop(f"{name}.global", None)
        stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : cols * bits].reshape(rows, cols, bits)
        codes = (stream * (1 << np.arange(bits))).sum(-1)
        if "int" in entry["spec"]["grid"]:
            values = codes + entry["spec"]["grid"]["int"]["lo"]
        else:
            values = np.where(codes & 8, -1, 1) * E2M1[codes & 7]
        at = np.arange(cols) // -(-cols // scale.shape[1])
        weight = (scale[:, at] * (values - zero[:, at])).astype(np.float32)
        state[f"{name}.weight"] = weight.T if entry["transposed"] else weight
    return config, {k: np.asarray(v, np.float32) for k, v in state.items()}


def expected(path):
    """The same as llama.cpp's converter would store it: by its names, with the rows of its rotary embedding."""
    config, state = native(path)
    gpt2 = config["model_type"] == "gpt2"
    arch = gguf.MODEL_ARCH["LLAMA" if config["model_type"] == "mistral" else config["model_type"].upper()]
    names = gguf.get_tensor_name_map(arch, config.get("n_layer") or config["num_hidden_layers"])
    out = {}
    for name, weight in state.items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads and arch == gguf.MODEL_ARCH.LLAMA:
            weight = weight.reshape(config[heads], 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        if gpt2 and weight.ndim == 2 and name.split(".")[-2].startswith("c_"):
            weight = weight.T
        out[names.get_name(name, (".weight", ".bias"))] = weight
    return out


def decoded(path):
    """The weights that the package decodes, and the types that they have in the file."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    out, types = {}, set()
    for name, t in tensors.items():
        if name.endswith(".scale"):
            continue
        weight = gguf.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(t.shape[::-1])
        factor = tensors.get(name.removesuffix("weight") + "scale") if name.endswith("weight") else None
        out[name] = weight if factor is None else weight * factor.data[0]
        if weight.ndim == 2:
            types.add(t.tensor_type.name)
    return out, " ".join(sorted(types))


def twin(path, weights, to):
    """Writes the file once more with its weights in f32."""
    reader = gguf.GGUFReader(path)
    text = lambda key: reader.fields[key].contents()
    writer = gguf.GGUFWriter(to, text("general.architecture"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, weight in weights.items():
        writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path, length, count):
    """Ids of the first windows of the text, and the logits at their positions."""
    model = Llama(str(path), n_ctx=length, n_batch=length, logits_all=True, verbose=False, n_threads=2, type_k=F32, type_v=F32)
    ids = model.tokenize(TEXT.read_bytes(), add_bos=False, special=False)
    for i in range(count):
        window = ids[i * length : (i + 1) * length]
        model.reset()
        model.eval(window)
        yield np.array(window), model.scores[:length].astype(np.float64)


def loss(ids, scores):
    top = scores.max(-1, keepdims=True)
    log = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
    return -log[np.arange(len(ids) - 1), ids[1:]].mean()


def main():
    qfw, work, own = sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
    print("| | in the file | values | twin | file | cosine | smallest |", "|---|---|---|---|---|---|---|", sep="\n")
    for i, (name, model, settings) in enumerate(RECIPES):
        if model == "MODEL" and own is None:
            continue
        length, count = (512, 4) if model == "MODEL" else (128, 24)
        out, other = work / f"{i}", work / f"{i}.f32.gguf"
        path = derived(model, work / f"{i}.source") if model in FAMILIES else own if model == "MODEL" else ASSETS / model
        sets = [word for setting in settings.split() for word in ("--set", setting)]
        run(qfw, "apply", path, "--algo", "rtn", "--format", "qfw,gguf", "-o", out, *sets)
        file = out / "gguf" / "model.gguf"
        ours = json.loads(run(qfw, "eval", "--seq-len", length, "--max-windows", count, "--json", "--data", TEXT, out / "qfw"))
        weights, types = decoded(file)
        right = expected(out / "qfw")
        assert weights.keys() - {"rope_freqs.weight"} == right.keys(), weights.keys() ^ right.keys()
        values = max(float(np.abs(weights[k] - right[k]).max() / np.abs(right[k]).max()) for k in right)
        twin(file, weights, other)
        losses, cosines = [], []
        for (ids, a), (_, b) in zip(logits(file, length, count), logits(other, length, count)):
            losses.append((loss(ids, a), loss(ids, b)))
            cosines.append(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)))
        theirs = np.exp(np.mean(losses, 0)) / ours["perplexity"] - 1
        shown = Path(own).name if model == "MODEL" else "tiny-llama" if model in FAMILIES else model
        print(f"| {shown}: {name} | {types} | {values:.0e} | {theirs[1]:+.1e} | {theirs[0]:+.1e} | {np.mean(cosines):.5f} | {np.min(cosines):.5f} |", flush=True)


main()
