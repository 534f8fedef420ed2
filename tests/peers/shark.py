"""What sharktank makes of the weights in the container `shark`: bit by bit, what this program says that they are.

    pip install torch==2.8.0 sharktank==3.8.0 wave-lang==3.8.1 iree-turbine==3.9.0 iree-base-compiler==3.9.0 iree-base-runtime==3.9.0
    pip install --no-deps amdsharktank==3.9.0
    python shark.py QFW DIR [--compile]

QFW is the program, DIR an empty directory. Each recipe quantizes `tiny-llama` into `shark` and into `safetensors-f32`, the floats that the codes
of the same run stand for. A line is a recipe, the layouts that hold its weights, and how many tensors sharktank and amdsharktank dequantize to
other floats; of those the largest difference, over the largest number of the tensor. Weights whose minima are rounded may be off by 2^-22 of that,
all others by nothing. What is further off is marked, and the script fails. What the model computes is run by `cargo xtask interop`.

With `--compile`, some recipes go further: IREE compiles the whole model for this CPU, with the archive for its parameters, and a line has the cosine
of its logits and those of the same model in PyTorch, and their largest difference over the largest logit.
"""

import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

warnings.filterwarnings("ignore")

import torch
from amdsharktank.types import Dataset as Later
from safetensors.torch import load_file
from sharktank.types import Dataset

ASSETS = Path(__file__).parents[2] / "cli" / "assets"
W = "scheme.weights."
AFFINE = f"{W}symmetric=false"

# name: settings, and whether minima are rounded
RECIPES = {
    "int8, channel": (f"{W}format=int8 {W}granularity=channel", False),
    "int8, tensor": (f"{W}format=int8 {W}granularity=tensor", False),
    "uint8 affine, channel": (f"{W}format=uint8 {AFFINE} {W}granularity=channel", False),
    "uint8, float zero points, channel": (f"{W}format=uint8 {AFFINE} {W}zero-point=float {W}granularity=channel", False),
    "int8, groups": (f"{W}format=int8 {W}granularity.group=32", False),
    "int5, blocks": (f"{W}format=int5 {W}granularity.block=[64,32]", False),
    "int4, groups": (f"{W}format=int4 {W}granularity.group=32", False),
    "int4, channel": (f"{W}format=int4 {W}granularity=channel", False),
    "uint4 affine, groups": (f"{W}format=uint4 {AFFINE} {W}granularity.group=32", False),
    "uint2 affine, groups": (f"{W}format=uint2 {AFFINE} {W}granularity.group=16", False),
    "uint4, float zero points, groups": (f"{W}format=uint4 {AFFINE} {W}zero-point=float {W}granularity.group=32", True),
    "int4 of f32, groups": (f"{W}format=int4 {W}granularity.group=32 model.dtype=float32", True),
    "e4m3, channel": (f"{W}format=fp8 {W}granularity=channel", False),
    "e4m3 fnuz, tensor": (f"{W}format=float-fnuz-e4m3 {W}granularity=tensor", False),
    "e5m2, channel": (f"{W}format=float-ocp-e5m2 {W}granularity=channel", False),
    "e5m2 fnuz, channel": (f"{W}format=float-fnuz-e5m2 {W}granularity=channel", False),
    "mxfp4": (f"{W}format=mxfp4", False),
    "embedding and head": (
        f"{W}format=int4 {W}granularity.group=32 model.tie-policy=untie scheme.head.format=int8 scheme.head.granularity=channel"
        " scheme.embed.format=int4 scheme.embed.granularity.group=32",
        False,
    ),
    "bf16, nothing quantized": ("harness.no-quantize=true model.dtype=bfloat16", False),
}
# What `--compile` compiles.
COMPILED = ["int8, channel", "uint8 affine, channel", "int8, groups", "int4, groups", "uint4 affine, groups", "e4m3, channel"]
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


def name_of(theirs):
    if theirs in WHOLE:
        return WHOLE[theirs]
    _, block, part, kind = theirs.split(".")
    return f"model.layers.{block}.{NAMES[part]}.{kind}"


def dequantized(package, path):
    """The floats of each tensor by its name here, and the layouts of those with codes."""
    weights, layouts = {}, Counter()
    for name, tensor in package.load(path, mmap=False).root_theta.flatten().items():
        if hasattr(tensor, "unpack"):
            layout = tensor.unpack()
            layouts[type(layout).__name__] += 1
            weights[name_of(name)] = layout.dequant(torch.float32)
        else:
            weights[name_of(name)] = tensor.as_torch().float()
    return weights, layouts


def compiled(path):
    """Cosine and largest difference of the logits of the model that IREE compiles, and of the model in PyTorch."""
    import iree.runtime as rt
    from sharktank.layers.configs import LlamaHParams, LlamaModelConfig
    from sharktank.models.llm import PagedLlmModelV1

    work, archive = path / "compiled", path / "dataset.irpa"
    work.mkdir()
    program, file = work / "model.mlir", work / "model.vmfb"
    kinds = [f"--{kind}-dtype=float32" for kind in ("activation", "attention", "kv-cache")]
    command = [sys.executable, "-m", "sharktank.examples.export_paged_llm_v1", f"--irpa-file={archive}", f"--output-mlir={program}"]
    command += [f"--output-config={work / 'config.json'}", "--bs-prefill=1", "--bs-decode=1", *kinds]
    subprocess.run(command, check=True, capture_output=True)
    command = [Path(sys.executable).parent / "iree-compile", program, "-o", file, "--iree-hal-target-device=local"]
    subprocess.run([*command, "--iree-hal-local-target-device-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host"], check=True, capture_output=True)

    dataset = Dataset.load(archive, mmap=False)
    config = LlamaModelConfig(
        hp=LlamaHParams.from_gguf_props(dataset.properties),
        activation_dtype=torch.float32,
        attention_dtype=torch.float32,
        kv_cache_dtype=torch.float32,
        matmul_kernel="torch",
    )
    model = PagedLlmModelV1(dataset.root_theta, config)
    tokens, length, pages = torch.arange(64)[None] * 7 % config.hp.vocab_size, torch.tensor([64]), torch.tensor([[1, 2]])
    cache = model.cache.allocate(3)
    with torch.no_grad():
        expected = model.prefill(tokens, seq_lens=length, seq_block_ids=pages, cache_state=cache)

    parameters = rt.ParameterIndex()
    parameters.load(str(archive))
    local = rt.Config("local-task")
    modules = [
        rt.create_io_parameters_module(local.vm_instance, parameters.create_provider(scope="model")),
        rt.create_hal_module(local.vm_instance, local.device),
        rt.VmModule.mmap(local.vm_instance, str(file)),
    ]
    context = rt.VmContext(local.vm_instance, modules)
    prefill = rt.FunctionInvoker(context, local.device, modules[-1].lookup_function("prefill_bs1"))
    empty = torch.zeros_like(cache[0])
    logits = prefill(*[rt.asdevicearray(local.device, t.numpy()) for t in (tokens, length, pages, empty)])
    a, b = torch.from_numpy(logits.to_host().copy()).double().flatten(), expected.double().flatten()
    return float(a @ b / a.norm() / b.norm()), float((a - b).abs().max() / b.abs().max())


def main(qfw, work, and_compile):
    failed = False
    for name, (settings, rounded) in RECIPES.items():
        out = work / name.replace(" ", "-").replace(",", "")
        words = [w for s in settings.split() for w in ("--set", s)]
        command = [qfw, "apply", ASSETS / "tiny-llama", "--algo", "rtn", *words, "--format", "shark,safetensors-f32", "-o", out]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"{name}: {ran.stderr}")
        ours = load_file(out / "safetensors-f32" / "model.safetensors")
        ours.setdefault("lm_head.weight", ours["model.embed_tokens.weight"])
        for package in (Dataset, Later):
            theirs, layouts = dequantized(package, out / "shark" / "dataset.irpa")
            others = {k for k in ours if not torch.equal(ours[k], theirs[k].reshape(ours[k].shape))}
            largest = max((float((ours[k] - theirs[k]).abs().max() / ours[k].abs().max()) for k in others), default=0.0)
            wrong = theirs.keys() != ours.keys() or largest > (2.0**-22 if rounded else 0.0)
            failed |= wrong
            kinds = ", ".join(f"{n} {layout}" for layout, n in layouts.items()) or "no codes"
            package = package.__module__.split(".")[0]
            print(f"{'WRONG ' if wrong else ''}{name}: {package}: {kinds}: {len(others)} of {len(ours)} differ, by {largest:.1e}", flush=True)
        if and_compile and name in COMPILED:
            cosine, largest = compiled(out / "shark")
            wrong = cosine < 0.9999 or largest > 5e-3
            failed |= wrong
            print(f"{'WRONG ' if wrong else ''}{name}: compiled: cosine {cosine:.6f}, largest {largest:.0e}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3:] == ["--compile"])
