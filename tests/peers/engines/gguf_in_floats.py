"""A GGUF file once more, with its weights decoded to f32 by the package `gguf`.

Engines round to 8 bits what a product with quantized weights reads; such a file tells the weights from that arithmetic.
"""

import gguf
import numpy as np


def decoded(path):
    """Names and weights, with the factors that stand beside them."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, t in tensors.items():
        if name.endswith(".scale"):
            continue
        weight = gguf.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(t.shape[::-1])
        factor = tensors.get(name.removesuffix("weight") + "scale") if name.endswith("weight") else None
        yield name, weight if factor is None else weight * factor.data[0]


def in_floats(path, to):
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(to, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, weight in decoded(path):
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to
