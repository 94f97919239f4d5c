"""What an install puts on a machine, and that the package is light to import."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import lm_eval_tandem
import newest
from interpreters import python
from lm_eval_tandem import _paths

DISTRIBUTION = "lm-eval-tandem"
HEAVY = ("torch", "transformers", "lm_eval", "numpy", "sklearn", "datasets", "safetensors")
INSTALL_FOLDER = Path(lm_eval_tandem.__file__).resolve().parent.parent
CHECKOUT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("lm_eval_tandem", "task_configs", "classifiers", "_lm_eval_tandem_hook.py", "lm_eval_tandem_hook.pth")
BUILT_BY = ("setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md")


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = f"import lm_eval_tandem; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code, path=[INSTALL_FOLDER]).strip() == "[]"


def test_importing_the_package_takes_under_50_ms() -> None:
    code = """
        import time
        start = time.process_time()  # of the clock it takes longer where other processes want the core
        import lm_eval_tandem
        print(time.process_time() - start)
    """
    assert statistics.median(float(python(code, path=[INSTALL_FOLDER])) for _ in range(5)) < 0.05


def test_folders_that_are_installed_with_the_package_are_found() -> None:
    assert list(_paths.task_configs().rglob("*.yaml"))
    assert _paths.classifiers().name == "classifiers"


def test_module_command_knows_the_tasks_of_the_package_and_of_the_user(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "mine.yaml").write_text("task: tandem_test_of_mine\ndataset_path: json\noutput_type: generate_until\n")
    code = f"""
        import json
        from lm_eval_tandem import _paths
        from lm_eval_tandem.__main__ import include_our_tasks
        from lm_eval.tasks import TaskManager
        include_our_tasks()
        names = []
        for include_path in (None, {str(tmp_path)!r}, [{str(tmp_path)!r}], _paths.task_configs()):
            known = TaskManager(include_path=include_path, include_defaults=False).all_tasks
            names.append(["tandem_pair_math" in known, "tandem_test_of_mine" in known])
        print(json.dumps(names))
    """
    assert json.loads(python(code, path=[INSTALL_FOLDER])) == [[True, False], [True, True], [True, True], [True, False]]


def requirements() -> dict[str, SpecifierSet]:
    """What setup.cfg asks of each library, extras included."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return {one.name: one.specifier for one in map(Requirement, " ".join(lines).split())}


@pytest.mark.parametrize("library", ["lm_eval", "transformers", "scikit-learn"])
def test_libraries_whose_private_parts_are_used_have_an_upper_bound(library: str) -> None:
    assert not requirements()[library].contains("99.0")


def test_no_newer_vllm_is_refused_by_its_number() -> None:
    """It is tried, and its entropies are compared with a reference (`engines.vllm.entropy_check`)."""
    assert all(requirements()["vllm"].contains(version) for version in ("0.29.0", "0.32.0", "99.0"))
    assert not requirements()["vllm"].contains("0.28.0")


def test_the_bounds_admit_the_releases_that_are_tested() -> None:
    wanted = requirements()
    for version in ("0.4.13", "0.5.0.dev1"):
        assert wanted["lm_eval"].contains(version, prereleases=True), version
    pinned = [line.partition(";")[0] for line in (CHECKOUT / "constraints.txt").read_text().splitlines()]
    pins = {one.name: one for line in pinned if "==" in line and (one := Requirement(line))}
    for name in ("transformers", "scikit-learn"):
        (version,) = (specifier.version for specifier in pins[name].specifier)
        assert wanted[name].contains(version), f"{name} {version}"


def test_the_newest_run_asks_for_every_library_without_an_upper_bound() -> None:
    asked = {one.name: one for one in map(Requirement, newest.unbounded())}
    left_out = {"vllm", "mkdocs", "mkdocs-material", "mkdocstrings"}
    assert set(asked) == set(requirements()) - left_out
    assert all(one.specifier.contains("9999.0") for one in asked.values())
    assert not asked["transformers"].specifier.contains("4.0"), "lower bounds stay"


def test_the_newest_runs_table_has_what_differs_from_the_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_numpy = importlib.metadata.version("numpy").partition("+")[0]
    pins = f"# pins\nPyYAML==0.1\nnumpy=={installed_numpy}\nabsent-library==1.0\n"
    (tmp_path / "constraints.txt").write_text(pins)
    monkeypatch.setattr(newest, "CHECKOUT", tmp_path)
    header, *rows = [line.split() for line in newest.table().splitlines()]
    assert header == ["name", "pinned", "newest"]
    assert rows == [["PyYAML", "0.1", importlib.metadata.version("PyYAML")]]


# --- the installed distribution, or a wheel built from the checkout


def installed() -> importlib.metadata.Distribution | None:
    """The distribution that the imported package belongs to; None in a checkout."""
    try:
        found = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    here = Path(str(found.locate_file("lm_eval_tandem"))).resolve() == INSTALL_FOLDER / "lm_eval_tandem"
    return found if here and found.read_text("RECORD") else None


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    distribution = installed()
    if distribution is not None:
        return {file.as_posix() for file in distribution.files or ()}
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in (*BUILT_FROM, *BUILT_BY):
        origin = INSTALL_FOLDER / name
        if origin.is_dir():
            shutil.copytree(origin, source / name)
        elif origin.is_file():
            shutil.copyfile(origin, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=1200)
    return set(zipfile.ZipFile(next(source.glob("*.whl"))).namelist())


def test_install_carries_the_hook_beside_the_package(contents: set[str]) -> None:
    assert {"lm_eval_tandem_hook.pth", "_lm_eval_tandem_hook.py", "lm_eval_tandem/py.typed"} <= contents


def test_install_carries_every_file_of_the_package_and_its_two_folders(contents: set[str]) -> None:
    package = INSTALL_FOLDER / "lm_eval_tandem"
    expected = {file.relative_to(INSTALL_FOLDER) for file in package.rglob("*")}
    for folder in (_paths.task_configs(), _paths.classifiers()):
        expected |= {Path("lm_eval_tandem", folder.name, file.relative_to(folder)) for file in folder.rglob("*")}
    wanted = {
        path.as_posix()
        for path in expected
        if path.suffix in {".py", ".yaml", ".jsonl", ".json", ".safetensors", ".jinja", ".css", ".log", ".md"}
        and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }
    assert sorted(wanted - contents) == []
    assert any(name.endswith(".yaml") for name in wanted)


def test_install_carries_weights_of_the_pair_and_a_classifier(contents: set[str]) -> None:
    for role in ("mentor", "intern"):
        assert f"lm_eval_tandem/pair/{role}/model.safetensors" in contents
    assert [name for name in contents if name.startswith("lm_eval_tandem/classifiers/") and name.endswith(".json")]


def test_install_carries_nothing_else(contents: set[str]) -> None:
    tops = {name.split("/")[0] for name in contents if not name.startswith(("..", "__pycache__"))}
    tops = {top for top in tops if not top.endswith((".dist-info", ".egg-info"))}
    assert tops == {"_lm_eval_tandem_hook.py", "lm_eval_tandem", "lm_eval_tandem_hook.pth"}


def test_entry_points_are_the_command_and_the_model() -> None:
    distribution = installed()
    if distribution is None:
        pytest.skip(f"{DISTRIBUTION} is not installed")
    assert {(point.group, point.name, point.value) for point in distribution.entry_points} == {
        ("console_scripts", "lm-eval-tandem", "lm_eval_tandem.cli:main"),
        ("lm_eval.models", "ensemble", "lm_eval_tandem.model:EnsembleLM"),
        ("lm_eval.models", "tandem", "lm_eval_tandem.model:TandemLM"),
    }
