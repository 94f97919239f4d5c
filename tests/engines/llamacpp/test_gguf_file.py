"""What a GGUF file says about its model is read without llama.cpp."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lm_eval_tandem import pair
from lm_eval_tandem.engines.llamacpp.gguf_file import GGUFFile
from lm_eval_tandem.errors import ArgumentError

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed: pip install '.[llamacpp]'")

ROWS, WIDTH = 100, 64


def written(path: Path, output: str) -> Path:
    """A file of two layers; the output layer is absent, the input layer rounded in another way, or one of its own."""
    import gguf

    random = np.random.default_rng(0)
    layers = random.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(77)
    writer.add_token_list([str(i) for i in range(ROWS)])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_string("text", "é")
    writer.add_tensor("token_embd.weight", layers[0].astype(np.float16))
    if output != "absent":
        values = layers[0 if output == "the input layer's" else 1]
        writer.add_tensor("output.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("output", "layers"), [("absent", 1), ("the input layer's", 1), ("its own", 2)])
def test_an_output_layer_that_is_the_input_layer_counts_once(tmp_path: Path, output: str, layers: int) -> None:
    file = GGUFFile.read(written(tmp_path / "model.gguf", output))
    assert file.parameters == layers * ROWS * WIDTH
    assert file.repeats_input_layer == (output == "the input layer's")


def test_values_after_arrays_are_read(tmp_path: Path) -> None:
    file = GGUFFile.read(written(tmp_path / "model.gguf", "absent"))
    assert file.metadata["text"] == "é"
    assert file.trained_window == 77


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "model.gguf", "absent").read_bytes()
    for content in (b"", b"GG", whole[:300], whole[:20]):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(ArgumentError, match="GGUF file"):
            GGUFFile.read(tmp_path / "broken.gguf")
    with pytest.raises(ArgumentError, match="is no GGUF file"):
        GGUFFile.read(pair.INTERN / "model.safetensors")
    with pytest.raises(ArgumentError, match="cannot be read"):
        GGUFFile.read(tmp_path / "absent.gguf")
