"""Last bits of floats, which differ between processors, change no letter of a report and none of its parts."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_tandem import digits
from lm_eval_tandem.reports.formats import svg
from lm_eval_tandem.reports.intervals import auc, difference, mcnemar, wilson
from lm_eval_tandem.reports.report import report, write
from lm_eval_tandem.reports.sections.entropy import density
from lm_eval_tandem.reports.sources.files import read_lines
from lm_eval_tandem.reports.table import Number, cost_unit

RESULTS = Path(__file__).parents[2] / "results" / "pair"
FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12).filter(
    lambda value: value == 0 or abs(value) > 1e-12
)


def nudged(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each number one up or down in its last bit; 0 stays 0, and NaN is no number."""
    infinite = np.where(rng.random(values.shape) < 0.5, -np.inf, np.inf).astype(values.dtype)
    return np.where(values == 0, values, np.nextafter(values, infinite))


def with_nudged(content: Any, rng: np.random.Generator) -> Any:
    """What JSON held, with every number that is no whole one nudged."""
    chance = random.Random(int(rng.integers(2**32))).random

    def inside(part: Any) -> Any:
        if isinstance(part, float):  # there are a million: numpy takes ten times as long for one
            return part and math.nextafter(part, -math.inf if chance() < 0.5 else math.inf)
        if isinstance(part, dict):
            return {name: inside(value) for name, value in part.items()}
        return [inside(value) for value in part] if isinstance(part, list) else part

    return inside(content)


def with_nudged_columns(table: pyarrow.Table, rng: np.random.Generator) -> pyarrow.Table:
    """Collected questions with every number of float64, alone or in lists, nudged; those of float32 in theirs."""

    def column(array: pyarrow.ChunkedArray) -> pyarrow.Array:
        whole = array.combine_chunks()
        if pyarrow.types.is_list(whole.type):
            return pyarrow.ListArray.from_arrays(whole.offsets, column(pyarrow.chunked_array([whole.values])))
        if not pyarrow.types.is_floating(whole.type) or not len(whole):
            return whole
        values = np.array(whole.to_pylist(), dtype=whole.type.to_pandas_dtype())
        return pyarrow.array(nudged(values, rng), type=whole.type, mask=np.array(whole.is_null()))

    columns = [column(table.column(name)) for name in table.column_names]
    return pyarrow.Table.from_arrays(columns, schema=table.schema)


def nudged_copy(folder: Path, copy: Path, seed: int) -> None:
    """Everything that a report reads of a folder, with the last bits of all numbers changed."""
    rng = np.random.default_rng(seed)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        target = copy / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
            if "tandem" in (content.get("config") or {}):  # a ledger with other last bits has other checksums
                content["config"]["tandem"].get("totals", {}).pop("ledger", None)
            target.write_text(json.dumps(with_nudged(content, rng)), encoding="utf-8")
        elif file.name.endswith((".jsonl", ".jsonl.xz")):
            lines = [json.dumps(with_nudged(json.loads(line), rng)) + "\n" for line in read_lines(file)]
            target.with_name(target.name.removesuffix(".xz")).write_text("".join(lines), encoding="utf-8")
        elif file.suffix == ".parquet":
            table = with_nudged_columns(pyarrow.parquet.read_table(file), rng)
            pyarrow.parquet.write_table(table, target)
        elif file.suffix == ".safetensors":
            shutil.copy(file, target)


def test_the_report_of_the_pair_stays_the_same_when_the_last_bits_of_its_inputs_change(tmp_path: Path) -> None:
    if not RESULTS.is_dir():
        pytest.skip("the tests were copied without results/")
    nudged_copy(RESULTS, tmp_path / "runs", seed=1)
    samples = next((tmp_path / "runs").rglob("samples_*"))
    before = RESULTS / f"{samples.relative_to(tmp_path / 'runs')}.xz"
    assert all(a != b for a, b in zip(read_lines(samples), read_lines(before), strict=True)), "nothing was changed"
    title = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    files = write(report([tmp_path / "runs"], title, by="steps"), tmp_path / "report")
    committed = {file.relative_to(RESULTS) for kind in ("*.csv", "*.svg") for file in RESULTS.rglob(kind)}
    assert committed <= {file.relative_to(tmp_path / "report") for file in files}, "a part is missing"
    for file in files:
        before = RESULTS / file.relative_to(tmp_path / "report")
        assert before.read_text(encoding="utf-8") == file.read_text(encoding="utf-8"), before.name


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_sums_have_no_order_and_comparisons_no_last_bit(values: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = np.array(values)
    assert digits.mean(rng.permutation(numbers)) == digits.mean(numbers)
    assert digits.total(rng.permutation(numbers)) == digits.total(numbers)
    rounded = digits.without_last_bits(numbers)
    assert rounded == pytest.approx(numbers, rel=2.0**-33)
    # numbers that came out of arithmetic lie anywhere, those that were given lie on the grid
    np.testing.assert_array_equal(digits.without_last_bits(nudged(rounded, rng)), rounded)
    assert not digits.subtract(numbers, nudged(numbers, rng)).any()


@pytest.mark.parametrize("value", [28.25, 28.35, 0.0625, 1234.5, 0.05, -0.05, 2.675, 99.95, 1e15, 0.1 + 0.2, 1e-300])
@pytest.mark.parametrize("signed", [False, True])
def test_a_tie_and_its_neighbours_are_printed_alike(value: float, signed: bool) -> None:
    for wide in range(4):
        near = [value, np.nextafter(value, -np.inf), np.nextafter(value, np.inf)]
        assert len({Number(float(one), (float(one), float(one)), wide, signed).__str__() for one in near}) == 1
        assert len({digits.significant(float(one), 3 + wide) for one in near}) == 1
        assert len({svg.coordinate(float(one)) for one in near}) == 1


def test_a_tie_goes_to_the_even_digit_of_the_decimal_and_zero_has_no_minus() -> None:
    assert [digits.decimals(value, 1) for value in (28.25, 28.35, 0.05, 0.15, 1e6)] == [
        *("28.2", "28.4", "0.0", "0.2", "1,000,000.0"),
    ]
    assert [digits.decimals(value, 3) for value in (-1e-17, -0.0, -0.0005, -0.0015)] == ["0.000"] * 3 + ["-0.002"]
    assert [digits.decimals(value, 1, signed=True) for value in (-0.0, -0.01, 0.04, 1.25)] == ["+0.0"] * 3 + ["+1.2"]
    assert [digits.significant(value) for value in (-0.0, 1 / 3, 1e6, 12345678, 0.1 + 0.2, 1e-9, -2.5)] == [
        *("0", "0.3333333", "1000000", "1.234568e+07", "0.3", "1e-09", "-2.5"),
    ]
    assert [digits.significant(value) for value in (np.inf, -np.inf, np.nan)] == ["inf", "-inf", "nan"]
    assert [digits.decimals(value, 1) for value in (np.inf, -np.inf, np.nan)] == ["inf", "-inf", "nan"]


def test_equal_numbers_stay_equal_on_either_side_of_their_last_bit() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 400).astype(float)
    scores = rng.integers(0, 12, 400) / 12  # many ties
    other = np.where(rng.random(400) < 0.2, 1 - truth, truth)
    curve = density(scores, 0.0, 1.0)
    for _ in range(5):
        noisy = nudged(truth, rng)
        assert auc(noisy, nudged(scores, rng)) == auc(truth, scores)
        assert mcnemar(noisy, nudged(other, rng)) == mcnemar(truth, other)
        assert difference(noisy, truth) == difference(truth, truth)
        assert density(nudged(scores, rng), 0.0, 1.0) == pytest.approx(np.array(curve), rel=1e-12)
    same = np.full(50, 0.1 + 0.2)
    assert density(nudged(same, rng), 0.0, 1.0) == pytest.approx(np.array(density(same, 0.0, 1.0)), rel=1e-9)
    assert all(wilson(0, n)[0] == 0 for n in range(1, 300))


@pytest.mark.parametrize("largest", [1e-6, 1e-3, 1.0, 10.0, 1000.0])
def test_the_unit_of_a_cost_does_not_depend_on_a_last_bit(largest: float) -> None:
    near = [largest, np.nextafter(largest, 0), np.nextafter(largest, np.inf)]
    assert len({cost_unit([float(cost)]) for cost in near}) == 1
