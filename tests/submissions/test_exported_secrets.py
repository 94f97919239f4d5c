"""No path, user name, host or key of a machine is in an export, wherever in the files of a run it stood."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import command, options_of
from engines.http.openai_server import serving
from lm_eval_tandem import pair
from submissions.exports import TASK, file_of, submit, without_checksums
from tasks.in_process import lm_eval

USER, HOST, KEY = "alice-planted", "gpu17.planted.example", "hf_PlantedSecretKey0123456789"
PLANTS = {
    "path": f"/home/{USER}/{HOST}/{KEY}",
    "end": f" (/home/{USER}/x.bin, C:\\Users\\{USER}\\y, sk-{KEY[3:]})",
    "address": f"https://{USER}:{KEY}@{HOST}:8000/v1",
}
TEXTS_OF_THE_TASK = {"doc_to_text", "until", "doc_to_target", "description"}
"""Fields of a task whose texts are part of its prompts, so that an address in them goes out."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all texts in a JSON value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))


def planted(value: Any, path: tuple[Any, ...], kind: str) -> Any:
    """Return a JSON value in which one text has the plant."""
    changed = copy.deepcopy(value)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = place[path[-1]] + PLANTS[kind] if kind == "end" else PLANTS[kind]
    return changed


@pytest.fixture(scope="module")
def small(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two questions with a mentor behind a server, whose arguments say more than others'."""
    base = tmp_path_factory.mktemp("small") / "run"
    with serving(Path(pair.MENTOR)) as server:
        api = {"mentor": "tiny", "mentor_backend": "openai", "mentor_base_url": server.url, "intern": "pair"}
        api |= {"prompts": "pair", "guidance": "guided", "efforts": "18:24:40", "mentor_parameters": 884480}
        lm_eval(
            *options_of(command(TASK, **api, policy="cascade", classifier="pair", ledger=base / "ledger.jsonl")),
            *("--limit", "2", "--output_path", str(base), "--log_samples", "--gen_kwargs", "until=@@"),
        )
    return base


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("where", ["results", "samples", "ledger"])
def test_no_place_user_or_key_goes_out_wherever_it_stands(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, kind: str
) -> None:
    run = shutil.copytree(small, tmp_path / "run")
    if where == "samples":
        without_checksums(run)  # so that an answer with a plant in it goes out
    file = {"results": "results_*", "samples": "samples_*", "ledger": "ledger.jsonl"}[where]
    target, ledger, results = file_of(run, file), run / "ledger.jsonl", file_of(run, "results_*")
    lines = [
        json.loads(line) for line in (target.read_text().splitlines() if where != "results" else [target.read_text()])
    ]
    whole = {one: one.read_text() for one in (target, ledger, results)}
    exported = 0
    for path in leaves(lines[: 2 if where == "ledger" else 1]):
        if kind == "address" and (where == "samples" or TEXTS_OF_THE_TASK & set(path)):
            continue  # a question may be about an address
        for one, text in whole.items():
            one.write_text(text)
        target.write_text("".join(json.dumps(line) + "\n" for line in planted(lines, path, kind)))
        if where == "results" and path[1:3] == ("config", "tandem"):  # the head of the ledger has it too
            head, *records = [json.loads(line) for line in whole[ledger].splitlines()]
            if path[3] in head:
                head = planted(head, path[3:], kind)
                ledger.write_text("".join(json.dumps(line) + "\n" for line in [head, *records]))
        if where == "ledger" and path[0] == 0 and path[1] != "format":
            content = json.loads(whole[results])
            content["config"]["tandem"] = planted(content["config"]["tandem"], path[1:], kind)
            results.write_text(json.dumps(content))
        out = tmp_path / "out"
        try:
            submit(out, run)
        except SystemExit:  # what was planted has made files that do not fit together
            assert not [file for file in out.rglob("*") if file.is_file()]
        else:
            exported += 1
            names = "\n".join(str(file.relative_to(out)) for file in out.rglob("*"))
            for text in (names, *(file.read_text() for file in out.rglob("*") if file.is_file())):
                for secret in (USER, HOST, KEY, KEY[3:]):
                    at = text.find(secret)
                    assert at < 0, f"{path}: {text[max(0, at - 200) : at + 60]}"
        shutil.rmtree(out, ignore_errors=True)
    capsys.readouterr()
    assert exported >= {"results": 40, "samples": 0 if kind == "address" else 4, "ledger": 10}[where]


def test_a_run_in_a_home_folder_shows_nothing_of_it(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "out", small)
    texts = "".join(file.read_text() for file in (tmp_path / "out").rglob("*.json*"))
    for word in (str(small), str(small.parent), str(Path.cwd()), "127.0.0.1", "ledger.jsonl", os.uname().nodename):
        assert word not in texts, word
    assert "held a key" not in capsys.readouterr().out
