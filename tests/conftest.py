"""Every test runs offline and, so that small models do not fight for cores, on one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def machine_report_left_out() -> Iterator[None]:
    """Leave out of results the harness's report of the machine: it runs pip, which takes longer than most tests."""
    if "torch" not in sys.modules:  # no test that was collected runs the harness in this process
        yield
        return
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", lambda: "left out by the tests")
        yield
