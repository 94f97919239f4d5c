"""Runs that several tests of submissions export: each kind of model once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from command_line import command, options_of
from engines.http.openai_server import serving
from lm_eval_tandem import pair
from submissions.exports import PRICES, QUESTIONS, TASK
from tasks.in_process import lm_eval


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs for each kind of model."""
    base = tmp_path_factory.mktemp("runs")

    def run(name: str, arguments: Sequence[str], *more: str) -> None:
        output = ["--limit", str(QUESTIONS), "--output_path", str(base / name), "--log_samples"]
        lm_eval(*options_of(arguments), *output, *more)

    for policy in ("cascade", "intern"):
        kept = base / f"tandem-{policy}" / "ledger.jsonl"
        run(f"tandem-{policy}", command(TASK, policy=policy, ledger=kept, **PRICES))
    kept = base / "ensemble" / "ledger.jsonl"
    ensemble = {"models": "pair/mentor;pair/intern", "aggregation": "best_of", "scorer": "logprob:intern"}
    run("ensemble", command(TASK, "ensemble", ledger=kept, **ensemble))
    run("hf", command(TASK, "hf", pretrained=pair.INTERN))
    with serving(Path(pair.MENTOR)) as server:
        api = {"mentor": "tiny", "mentor_backend": "openai", "mentor_base_url": server.url, "intern": "pair"}
        api |= {"prompts": "pair", "guidance": "guided", "efforts": "18:24:40", "policy": "stage:2"}
        kept = base / "api" / "ledger.jsonl"
        run("api", command(TASK, **api, **{"mentor_parameters": 884480}, ledger=kept, **PRICES))
        url = f"{server.url}/completions"
        plain = command(TASK, "local-completions", base_url=url, pretrained="tiny", tokenizer_backend=None)
        run("server", plain, "--batch_size", "1")
    return base


@pytest.fixture
def cascade(runs: Path, tmp_path: Path) -> Path:
    """A copy of the cascade's run, to be changed."""
    return shutil.copytree(runs / "tandem-cascade", tmp_path / "run")
