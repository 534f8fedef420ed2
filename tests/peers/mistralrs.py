"""Whether mistral.rs continues a text as `qfw generate` does, from files of the container `gguf`.

    pip install mistralrs==0.9.5
    python mistralrs.py QFW DIR

QFW is the program, DIR an empty directory. A line is a recipe, and of how many texts the continuation is the same, or how loading failed. Both
take the likeliest token each time; mistral.rs rounds what its products read to 8 bits, so that of two that are nearly as likely it may take the other.
"""

import subprocess
import sys
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]  # this file is called `mistralrs` as well

from mistralrs import CompletionRequest, Runner, Which

ASSETS = Path(__file__).parents[2] / "cli" / "assets"
W = "scheme.weights."
GROUP = f"--set {W}granularity.group=32"
PROMPTS = ["It was the", "She looked at", "The old man", "When he came", "There was a", "In the morning", "I do not", "They had been"]
TOKENS = 12
RECIPES = [
    ("Q4_0", "tiny-llama", f"--set {W}format=int4 {GROUP}"),
    ("Q4_1", "tiny-llama", f"--set {W}format=uint4 --set {W}symmetric=false {GROUP}"),
    ("Q5_0", "tiny-llama", f"--set {W}format=int5 {GROUP}"),
    ("Q5_1", "tiny-llama", f"--set {W}format=uint5 --set {W}symmetric=false {GROUP}"),
    ("Q8_0", "tiny-llama", f"--set {W}format=int8 {GROUP}"),
    ("MXFP4", "tiny-llama", f"--set {W}format=mxfp4"),
    ("GPT-2, Q8_0", "tiny-gpt2", f"--set {W}format=int8 {GROUP}"),
]


def run(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def main():
    qfw, work = sys.argv[1], Path(sys.argv[2])
    for i, (name, model, words) in enumerate(RECIPES):
        out = work / f"{i}"
        run(qfw, "apply", ASSETS / model, "--algo", "rtn", "--format", "gguf", "-o", out, *words.split())
        try:
            runner, same = Runner(which=Which.GGUF(quantized_model_id=str(out), quantized_filename="model.gguf")), 0
            for prompt in PROMPTS:
                request = CompletionRequest(model="default", prompt=prompt, max_tokens=TOKENS, temperature=0.0, top_k=1)
                theirs = runner.send_completion_request(request).choices[0].text
                ours = run(qfw, "generate", "--temperature", 0, "--max-new-tokens", TOKENS, "--prompt", prompt, out)
                same += theirs.strip() == ours.strip().removeprefix(prompt).strip()
            found = f"{same} of {len(PROMPTS)}"
        except ValueError as e:  # whatever a loader does is the result
            found = f"{type(e).__name__}: {str(e).splitlines()[0][:80]}"
        print(f"| {name} | {found} |", flush=True)


main()
