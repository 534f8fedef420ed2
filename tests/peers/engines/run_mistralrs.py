"""mistral.rs, the wheel for CPUs, as a driver of `cargo xtask interop`.

It gives no logits, but the logarithms of the probabilities of the next token, all of them; and it takes text. So a position is a request
with the text up to it, and every STEPth is one. With the option `floats` it loads the same GGUF file with its weights decoded to f32.
"""

from protocol import serve  # isort: skip

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf_in_floats import in_floats
from mistralrs import ChatCompletionRequest, ModelDType, Runner, Which

STEP = 16
TEMPLATE = "{{ messages[0]['content'] }}"


def loaded(job, folder):
    template = Path(folder) / "text.jinja"
    template.write_text(TEMPLATE)
    given = {"jinja_explicit": str(template), "prefix_cache_n": 0}
    path = Path(job["checkpoint"])
    if job["option"] == "floats":
        # The tokenizer beside a file adds the first token, and the one inside a file does not, whatever its keys say.
        shutil.copytree(path, folder, ignore=shutil.ignore_patterns("model.gguf"), dirs_exist_ok=True)
        in_floats(path / "model.gguf", Path(folder) / "model.gguf")
        path = Path(folder)
    if job["container"] == "gguf":
        which = Which.GGUF(quantized_model_id=str(path), quantized_filename="model.gguf")
    else:
        which = Which.Plain(model_id=str(path), dtype=ModelDType.F32)
    return Runner(which=which, **given)


def run(job, windows):
    with tempfile.TemporaryDirectory() as folder:
        runner = loaded(job, folder)
        vocabulary = int(job["vocabulary"])
        out = []
        for ids in windows:
            rows, positions = [], []
            for end in range(STEP, len(ids) + 1, STEP):
                # The first token begins the text, and is put there by mistral.rs.
                text = runner.detokenize_text(ids[1:end].tolist(), skip_special_tokens=False)
                again = runner.tokenize_text(text, add_special_tokens=False, enable_thinking=None)
                if again != ids[1:end].tolist():
                    continue  # a text that ends here has other tokens
                request = ChatCompletionRequest(
                    model="default", messages=[{"role": "user", "content": text}], logprobs=True, top_logprobs=vocabulary, max_tokens=1
                )
                answer = runner.send_chat_completion_request(request)
                if answer.usage.prompt_tokens != end:
                    raise ValueError(f"it reads {answer.usage.prompt_tokens} tokens where {end} were given")
                row = np.full(vocabulary, np.nan, np.float32)
                for token in answer.choices[0].logprobs.content[0].top_logprobs:
                    row[token.token] = token.logprob
                rows.append(row)
                positions.append(end - 1)
            if not rows:
                raise RuntimeError("no part of the text has the same tokens when it ends where the part does")
            out.append((np.stack(rows), positions))
        return out


serve(f"mistralrs {version('mistralrs')}", run)
