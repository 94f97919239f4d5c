"""A classifier is loaded from a model repository of a hub, or from a copy of one, and only as it was published."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

import hub_server
from lm_eval_tandem import _paths
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.judge import artefact, repository
from lm_eval_tandem.judge.repository import HubRepository

REPOSITORY, COMMIT = "lab/cascade", "0123456789abcdef0123456789abcdef01234567"
SHIPPED = _paths.classifiers() / "pair"
NOTHING = "# a comment\n"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with the bundled pair's classifier, and with what no run needs."""
    root = tmp_path / "copy"
    shutil.copytree(SHIPPED, root / "classifier" / "pair")
    (root / "tandem.yaml").write_text("model: tandem\n")
    listed = files_of(root)
    (root / "SHA256SUMS").write_text(repository.checksum_lines(listed))
    (root / "README.md").write_text("# A card\n")
    (root / "code.py").write_text("raise SystemExit('this was run')\n")
    return root


@pytest.fixture
def cached(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in the hub library's cache, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return hub_server.cache(tmp_path / "cache", REPOSITORY, COMMIT, files_of(copy))


@pytest.mark.parametrize(
    ("text", "wanted", "pinned"),
    [
        ("hub:lab/cascade", HubRepository("lab/cascade"), False),
        ("hub:lab/cascade@v1", HubRepository("lab/cascade", "v1"), False),
        ("hub:lab/cascade@refs/pr/3", HubRepository("lab/cascade", "refs/pr/3"), False),
        ("hub:lab/cascade@0123456", HubRepository("lab/cascade", "0123456"), False),
        (f"hub:lab/cascade@{COMMIT}", HubRepository("lab/cascade", COMMIT), True),
    ],
)
def test_hub_names_a_repository_and_a_revision(text: str, wanted: HubRepository, pinned: bool) -> None:
    found = repository.parse(text)
    assert found == wanted
    assert isinstance(found, HubRepository)
    assert found.pinned == pinned
    assert str(found) == text


def test_anything_else_is_a_folder() -> None:
    assert repository.parse("runs/judge") == Path("runs/judge")
    assert repository.parse("hub:./copy") == Path("copy")
    assert repository.parse("hub:~/copy") == Path.home() / "copy"


@pytest.mark.parametrize(
    "text", ["hub:", "hub:cascade", "hub:a/b/c", "hub:lab/cascade@", "hub:lab/cascade@a b", "hub:lab/cascade@COMMIT"]
)
def test_what_names_no_repository_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        repository.parse(text)
    assert str(refused.value).startswith(f"classifier={text} ")
    assert "\n" not in str(refused.value)
    assert ("COMMIT; put a commit" in str(refused.value)) == text.endswith("@COMMIT")


def test_both_a_copy_and_the_folder_within_are_the_classifier(copy: Path) -> None:
    shipped = artefact.load(SHIPPED)
    for folder in (copy, copy / "classifier" / "pair", str(copy)):
        judge = artefact.load(folder, stages=4)
        assert judge.name == "pair"
        assert judge.config == shipped.config
        assert judge.thresholds == shipped.thresholds
        assert judge.origin == {}
    x = np.linspace(0, 1, shipped.estimator.n_features_in_)
    assert artefact.load(copy).score(x) == shipped.score(x)
    assert set(artefact.load_out_of_fold(copy)) == {"questions", "scores"}


def test_offline_it_comes_from_the_cache(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    judge = artefact.load(HubRepository(REPOSITORY, COMMIT))
    assert judge.origin == {"repository": REPOSITORY, "commit": COMMIT}
    assert judge.name == "pair"
    assert not caplog.records
    unpinned = artefact.load(HubRepository(REPOSITORY))
    assert unpinned.origin == judge.origin
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert f"classifier=hub:{REPOSITORY}@{COMMIT}" in warning.getMessage()


@pytest.mark.parametrize("revision", [None, "v2", "f" * 40])
def test_what_the_cache_lacks_is_refused_in_one_sentence(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ClassifierError, match=r"classifier=hub:lab/cascade\S* cannot be fetched") as refused:
        artefact.load(HubRepository(REPOSITORY, revision))
    assert "\n" not in str(refused.value)


CHANGES = {
    "classifier/pair/config.json": (b"0.05", b"0.06"),
    "classifier/pair/model.safetensors": None,
    "classifier/pair/out_of_fold.safetensors": None,
    "tandem.yaml": (b"tandem", b"hf"),
}
"""What somebody changes of a published repository; None: the last byte."""


@pytest.mark.parametrize("file", CHANGES)
@pytest.mark.parametrize("within", ["", "classifier/pair"])
def test_a_changed_file_is_refused(copy: Path, file: str, within: str) -> None:
    content, change = (copy / file).read_bytes(), CHANGES[file]
    changed = content.replace(*change, 1) if change else content[:-1] + bytes([content[-1] ^ 1])
    assert changed != content
    (copy / file).write_bytes(changed)
    with pytest.raises(ClassifierError, match=re.escape(f"{file} of the repository")) as refused:
        artefact.load(copy / within)
    assert "\n" not in str(refused.value)


def test_a_changed_file_of_the_cache_is_refused(cached: Path) -> None:
    file = cached / "classifier" / "pair" / "config.json"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content.replace(b"0.05", b"0.95"))
    with pytest.raises(ClassifierError, match=rf"config.json of the repository hub:{REPOSITORY}@{COMMIT} is not"):
        artefact.load(HubRepository(REPOSITORY, COMMIT))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (None, "lacks a readable SHA256SUMS"),
        (NOTHING, "has no checksum of tandem.yaml"),
        (f"{'0' * 64}  tandem.yaml\n", "has no checksum of classifier/pair/config.json"),
    ],
)
def test_checksums_cannot_be_taken_away(copy: Path, lines: str | None, reason: str) -> None:
    if lines is None:
        (copy / "SHA256SUMS").unlink()
    else:
        (copy / "SHA256SUMS").write_text(lines)
    with pytest.raises(ClassifierError, match=reason):
        artefact.load(copy)


def test_the_checksums_are_those_of_the_usual_tool(copy: Path) -> None:
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == len(files_of(copy / "classifier")) + 1
    for line in lines:
        checksum, name = line.split("  ", 1)
        assert hashlib.sha256((copy / name).read_bytes()).hexdigest() == checksum
    if (tool := shutil.which("sha256sum")) is not None:
        subprocess.run([tool, "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=copy, check=True)


def test_a_repository_with_two_classifiers_or_none_is_refused(copy: Path, cached: Path) -> None:
    shutil.copytree(copy / "classifier" / "pair", copy / "classifier" / "other")
    with pytest.raises(ClassifierError, match="holds 2 classifiers"):
        artefact.load(copy)
    shutil.rmtree(cached / "classifier")
    with pytest.raises(ClassifierError, match=f"repository hub:{REPOSITORY} holds 0 classifiers"):
        artefact.load(HubRepository(REPOSITORY))


LOAD = """
import json, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import artefact, repository
try:
    judge = artefact.load(repository.parse(sys.argv[1]))
    print(json.dumps({"origin": dict(judge.origin), "thresholds": judge.thresholds, "name": judge.name}))
except ClassifierError as error:
    print(json.dumps({"error": str(error)}))
print(json.dumps(sorted(sys.modules)))
"""


def load(hub: hub_server.Hub, cache: Path, classifier: str, offline: bool = False) -> tuple[dict[str, object], str]:
    """What a new process loads from the hub, and what it logs."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", LOAD, classifier]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    found, modules = map(json.loads, done.stdout.splitlines())
    assert "torch" not in modules
    return found, done.stderr


def test_it_is_fetched_over_http_and_nothing_else_is(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with hub_server.Hub.of(REPOSITORY, COMMIT, copy).running() as hub:
        found, log = load(hub, cache, f"hub:{REPOSITORY}")
        assert found["origin"] == {"repository": REPOSITORY, "commit": COMMIT}
        assert found["name"] == "pair"
        assert f"hub:{REPOSITORY}@{COMMIT}" in log
        files = ("classifier/pair/config.json", "classifier/pair/model.safetensors", "SHA256SUMS", "tandem.yaml")
        assert hub.fetched == set(files)
        pinned, log = load(hub, cache, f"hub:{REPOSITORY}@{COMMIT}")
        assert pinned == found
        assert "WARNING" not in log
        missing, _ = load(hub, cache, f"hub:{REPOSITORY}@v9")
        assert str(missing["error"]).startswith(f"classifier=hub:{REPOSITORY}@v9 cannot be fetched")
        other, _ = load(hub, cache, "hub:lab/other")
        assert str(other["error"]).startswith("classifier=hub:lab/other cannot be fetched")
        asked = len(hub.asked)
        offline, _ = load(hub, cache, f"hub:{REPOSITORY}@{COMMIT}", offline=True)
        assert offline == found
        assert len(hub.asked) == asked


def test_a_hub_that_serves_another_file_is_refused(copy: Path, tmp_path: Path) -> None:
    hub = hub_server.Hub.of(REPOSITORY, COMMIT, copy)
    name = "classifier/pair/config.json"
    hub.files[name] = hub.files[name].replace(b"0.05", b"0.95")
    with hub.running():
        found, _ = load(hub, tmp_path / "cache", f"hub:{REPOSITORY}@{COMMIT}")
    assert str(found["error"]).startswith(f"{name} of the repository hub:{REPOSITORY}@{COMMIT} is not the file")


def test_without_a_connection_the_reason_is_one_sentence(copy: Path, tmp_path: Path) -> None:
    hub = hub_server.Hub.of(REPOSITORY, COMMIT, copy)
    hub.server_close()
    found, _ = load(hub, tmp_path / "cache", f"hub:{REPOSITORY}")
    assert str(found["error"]).startswith(f"classifier=hub:{REPOSITORY} cannot be fetched")
    assert "\n" not in str(found["error"])
