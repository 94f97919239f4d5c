"""What a GGUF file says about its model: metadata, and the names and shapes of its tensors.

The file's values are read one after the other; the tensors themselves are not, except to find out whether an output
layer that is stored apart is the input layer's once more.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lm_eval_tandem.engines.output_layer import is_repeated, sampled_rows
from lm_eval_tandem.errors import ArgumentError

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats (of `struct`) of the types of values; 8 is a text, 9 an array."""
TEXT, ARRAY = 8, 9
INPUT_LAYER, OUTPUT_LAYER = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Tensor:
    """One tensor's place in the file: shape (rows last), type of its numbers, and offset in bytes."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """The head of a GGUF file.

    Attributes
    ----------
    path
        The file.
    metadata
        Values by key; arrays are left out.
    tensors
        By name.
    data
        Offset of the first tensor.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data: int

    @classmethod
    def read(cls, path: Path) -> GGUFFile:
        """Read the head of a file.

        Raises
        ------
        ArgumentError
            It cannot be read, or is no GGUF file.
        """
        try:
            with path.open("rb") as file:
                if file.read(4) != MAGIC:
                    raise ArgumentError(f"{path} is no GGUF file; give one, as llama.cpp's converters write them.")
                return cls._read(path, file)
        except (OSError, struct.error, OverflowError, KeyError) as error:
            raise ArgumentError(f"{path} cannot be read as a GGUF file ({error}); give a whole one.") from error

    @classmethod
    def _read(cls, path: Path, file: BinaryIO) -> GGUFFile:
        _, n_tensors, n_values = _unpack(file, "IQQ")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = _text(file)
            (kind,) = _unpack(file, "I")
            value = _value(file, kind)
            if kind != ARRAY:
                metadata[key] = value
        tensors = {}
        for _ in range(n_tensors):
            name = _text(file)
            (n,) = _unpack(file, "I")
            shape = _unpack(file, f"{n}Q")
            tensors[name] = Tensor(tuple(shape), *_unpack(file, "IQ"))
        alignment = int(metadata.get("general.alignment", 32))
        return cls(path, metadata, tensors, -(-file.tell() // alignment) * alignment)

    @property
    def trained_window(self) -> int | None:
        """Context length that the model was trained with; None where the file does not say it."""
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.context_length")
        return None if value is None else int(value)

    @property
    def parameters(self) -> int:
        """Number of all parameters; an output layer that repeats the input layer counts once."""
        stored = {name: math.prod(tensor.shape) for name, tensor in self.tensors.items()}
        return sum(stored.values()) - (stored[OUTPUT_LAYER] if self.repeats_input_layer else 0)

    @property
    def repeats_input_layer(self) -> bool:
        """Whether the output layer is stored, and is the input layer once more, perhaps rounded in another way."""
        if OUTPUT_LAYER not in self.tensors or INPUT_LAYER not in self.tensors:
            return False
        one, other = self.tensors[INPUT_LAYER], self.tensors[OUTPUT_LAYER]
        if one.shape != other.shape:
            return False
        rows = sampled_rows(one.shape[1])
        return is_repeated(self._rows(one, rows), self._rows(other, rows))

    def _rows(self, tensor: Tensor, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Some rows of a matrix, as float32."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(tensor.kind)
        block, size = GGML_QUANT_SIZES[kind]
        width = tensor.shape[0] // block * size
        raw = np.memmap(self.path, np.uint8, "r", self.data + tensor.offset, (tensor.shape[1], width))
        return np.asarray(dequantize(np.ascontiguousarray(raw[rows]), kind), dtype=np.float32)


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return file.read(length).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """The next value; None for an array, which is skipped."""
    if kind == TEXT:
        return _text(file)
    if kind != ARRAY:
        return _unpack(file, SCALARS[kind])[0]
    of, length = _unpack(file, "IQ")
    if of in SCALARS:
        file.seek(length * struct.calcsize(f"<{SCALARS[of]}"), 1)
    else:
        for _ in range(length):
            _value(file, of)
    return None
