"""GGUF to 16 bit, run by the Python of the vLLM environment (labkit itself needs neither torch nor gguf).

    python convert.py safetensors MODEL.gguf FOLDER [HEADS]  for vLLM: Hugging Face folder, bfloat16
    python convert.py f16 MODEL.gguf MODEL-F16.gguf          for Ollama: the same values as float16

Both dequantise every tensor and round it to bfloat16; the second stores those values as float16 and stops if
one of them does not fit exactly. So both engines hold the same numbers.

Ollama gets a GGUF with the source's metadata, since ``ollama create`` from the folder (tried with 0.34.0)
writes the pre-tokenizer "default" where this model has "smollm", and splits punctuation otherwise than vLLM.
The same input gives the same bytes each time.

With HEADS the model gets attention heads of zeros until it has so many, and KV heads in proportion. A head of
zeros adds zero to every sum, so the model says the same; but now more numbers of ranks divide its heads.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read by transformers at import: a conversion never needs the network

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

# transformers (5.19) drops a GGUF's pre-tokenizer; without this one "x  20" is a token longer in vLLM.
PRE_TOKENIZERS = {
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
}


def to_safetensors(source: Path, folder: Path, heads: int | None = None) -> None:
    """Write ``folder``: config, tokenizer, chat template and one model.safetensors in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    if heads is not None:
        model = _padded(model, heads)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    pre = gguf.GGUFReader(source).fields["tokenizer.ggml.pre"].contents()
    if pre in PRE_TOKENIZERS:
        tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
    tokenizer.save_pretrained(folder)


def _padded(model: Any, heads: int) -> Any:
    """The same model with heads of zeros behind its own."""
    config = copy.deepcopy(model.config)
    if heads * config.num_key_value_heads % config.num_attention_heads:
        sys.exit(f"{heads} heads: the KV heads cannot grow in the same proportion")
    config.num_key_value_heads = heads * config.num_key_value_heads // config.num_attention_heads
    config.num_attention_heads = heads
    wider = type(model)(config).to(torch.bfloat16)
    own = model.state_dict()
    with torch.no_grad():
        for name, values in wider.state_dict().items():
            values.zero_()[tuple(slice(size) for size in own[name].shape)] = own[name]
    wider.generation_config = model.generation_config
    return wider


def to_f16(source: Path, target: Path) -> None:
    """Write ``target``: matrices as float16, vectors as float32, everything else as in ``source``."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue  # the writer sets these itself
        value = gguf.LlamaFileType.MOSTLY_F16 if name == "general.file_type" else field.contents()
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        rounded = torch.tensor(values).to(torch.bfloat16).float().numpy()
        stored = rounded.astype(np.float16) if rounded.ndim > 1 else rounded
        if not np.array_equal(stored.astype(np.float32), rounded):
            sys.exit(f"{tensor.name}: a bfloat16 value is outside the range of float16")
        writer.add_tensor(tensor.name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    given, made = map(Path, sys.argv[2:4])
    if sys.argv[1] == "f16":
        to_f16(given, made)
    else:
        to_safetensors(given, made, *map(int, sys.argv[4:]))
