"""Write the model of a GGUF file as a folder that transformers loads, its weights unpacked.

    python benchmarks/unpack.py FILE FOLDER [--dtype bfloat16|float32]

transformers reads GGUF files itself, in minutes each time. A folder is read in seconds, and programs that run the model
in the type of its weights share the memory that these take.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from real import add_dtype
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    add_dtype(parser)
    given = parser.parse_args(arguments)
    folder, name = str(given.file.parent), given.file.name
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=unpacked, dtype=getattr(torch, given.dtype)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.save_pretrained(given.folder)
    tokenizer.save_pretrained(given.folder)
    print(f"{name}: {model.num_parameters():,} parameters, in {given.folder}")


if __name__ == "__main__":
    main()
