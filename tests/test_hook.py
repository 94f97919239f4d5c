"""The import hook that registers the model: what it does, what it leaves unchanged, and what it costs."""

from __future__ import annotations

import ast
import importlib.util
import os
import py_compile
import statistics
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from interpreters import python


def hook_source() -> Path:
    spec = importlib.util.find_spec("_lm_eval_tandem_hook")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def pth_source() -> Path:
    return hook_source().with_name("lm_eval_tandem_hook.pth")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for lm-eval with the parts that the hook uses; it is imported in a millisecond."""
    root = tmp_path_factory.mktemp("harness")
    for name in ("lm_eval", "lm_eval/api", "lm_eval/models"):
        (root / name).mkdir()
        (root / name / "__init__.py").touch()
    (root / "lm_eval/api/registry.py").write_text(
        textwrap.dedent("""
            class Registry(dict):
                def register(self, name, target):
                    self[name] = target

            model_registry = Registry()
        """)
    )
    (root / "lm_eval/models/__init__.py").write_text(
        "from lm_eval.api.registry import model_registry\nmodel_registry.register('hf', 'lm_eval.models.hf:HFLM')\n"
    )
    (root / "lm_eval/models/hf.py").write_text("class HFLM: pass\n")
    (root / "lm_eval/models/note.txt").write_text("kept")
    return root


@pytest.fixture(scope="module")
def hook_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds only the hook."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / hook_source().name).write_bytes(hook_source().read_bytes())
    return folder


# --- against the stand-in, with -S so that an installed hook does not act instead of the one under test


def test_model_is_registered_once_lm_eval_models_is_imported(harness: Path, hook_alone: Path) -> None:
    code = """
        before = list(sys.meta_path)
        from _lm_eval_tandem_hook import install
        install()
        install()
        assert len(sys.meta_path) == len(before) + 1
        from lm_eval.api.registry import model_registry
        assert dict(model_registry) == {}, "the harness itself must come first"
        import lm_eval.models
        print(dict(model_registry))
        assert sys.meta_path == before
        assert not [name for name in sys.modules if name.startswith("lm_eval_tandem")]
    """
    printed = python(code, "-S", path=[harness, hook_alone])
    ours = {"tandem": "lm_eval_tandem.model:TandemLM", "ensemble": "lm_eval_tandem.model:EnsembleLM"}
    assert ast.literal_eval(printed) == {"hf": "lm_eval.models.hf:HFLM", **ours}


def test_module_keeps_its_loader_with_everything_the_loader_can_do(harness: Path, hook_alone: Path) -> None:
    code = """
        import importlib, importlib.machinery, importlib.resources, importlib.util, inspect, pickle
        from _lm_eval_tandem_hook import install
        install()
        found = importlib.util.find_spec("lm_eval.models")  # finding a spec is not importing: the hook still waits
        assert type(found.loader) is importlib.machinery.SourceFileLoader
        import lm_eval.models
        spec = lm_eval.models.__spec__
        assert type(spec.loader) is importlib.machinery.SourceFileLoader
        assert spec.loader is lm_eval.models.__loader__ and set(vars(spec.loader)) == {"name", "path"}
        assert importlib.util.find_spec("lm_eval.models") is spec
        assert spec.submodule_search_locations and "HFLM" in inspect.getsource(lm_eval.models)
        assert importlib.resources.files("lm_eval.models").joinpath("note.txt").read_text() == "kept"
        from lm_eval.models.hf import HFLM
        assert pickle.loads(pickle.dumps(HFLM)) is HFLM
        assert importlib.reload(lm_eval.models) is lm_eval.models
        from lm_eval.api.registry import model_registry
        print(sorted(model_registry))
    """
    assert python(code, "-S", path=[harness, hook_alone]).strip() == "['ensemble', 'hf', 'tandem']"


def test_name_that_is_taken_is_not_replaced(harness: Path, hook_alone: Path) -> None:
    code = """
        from _lm_eval_tandem_hook import install
        from lm_eval.api.registry import model_registry
        model_registry.register("tandem", "another.package:Model")
        install()
        import lm_eval.models
        print(model_registry["tandem"])
    """
    assert python(code, "-S", path=[harness, hook_alone]).strip() == "another.package:Model"


def test_hook_that_is_installed_late_registers_at_once(harness: Path, hook_alone: Path) -> None:
    code = """
        import lm_eval.models
        from _lm_eval_tandem_hook import install
        install()
        from lm_eval.api.registry import model_registry
        print("tandem" in model_registry, any(type(finder).__name__ == "Finder" for finder in sys.meta_path))
    """
    assert python(code, "-S", path=[harness, hook_alone]).strip() == "True False"


def test_import_that_fails_raises_its_own_error_and_can_be_repeated(tmp_path: Path, hook_alone: Path) -> None:
    code = """
        from pathlib import Path
        from _lm_eval_tandem_hook import install
        install()
        for _ in range(2):
            try:
                import lm_eval.models
            except ZeroDivisionError:
                print("failed")
        source = Path("lm_eval/models.py")
        source.write_text("")
        import lm_eval.models  # a missing registry must not break the import
        print("imported", any(type(finder).__name__ == "Finder" for finder in sys.meta_path))
    """
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval/__init__.py").touch()
    (tmp_path / "lm_eval/models.py").write_text("1 / 0")
    printed = python(code, "-B", "-S", path=[tmp_path, hook_alone], cwd=tmp_path)
    assert printed.split() == ["failed", "failed", "imported", "False"]


def test_finders_that_call_one_another_do_not_recurse_without_end(harness: Path, hook_alone: Path) -> None:
    code = """
        class Other:  # another package's hook of the same kind, without a guard of its own
            def find_spec(self, name, path=None, target=None):
                if name != "lm_eval.models":
                    return None
                others = (finder for finder in sys.meta_path if finder is not self)
                return next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)

        from _lm_eval_tandem_hook import install
        install()
        sys.meta_path.insert(0, Other())
        import lm_eval.models
        from lm_eval.api.registry import model_registry
        print("tandem" in model_registry)
    """
    assert python(code, "-S", path=[harness, hook_alone]).strip() == "True"


def test_harness_in_a_zip_archive_works_too(harness: Path, hook_alone: Path, tmp_path: Path) -> None:
    archive = tmp_path / "harness.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in harness.rglob("*.py"):
            zipped.write(file, file.relative_to(harness))
    code = """
        import importlib.util
        from _lm_eval_tandem_hook import install
        install()
        importlib.util.find_spec("lm_eval.models")  # the archive has one loader for all its modules
        from lm_eval.api.registry import model_registry
        assert dict(model_registry) == {}, "another module of the archive must not count as the awaited one"
        import lm_eval.models.hf
        print(sorted(model_registry))
    """
    assert python(code, "-S", path=[archive, hook_alone]).strip() == "['ensemble', 'hf', 'tandem']"


SWITCHED_OFF = ["0", "false", "off", "no", "OFF", "False", " No "]


@pytest.mark.parametrize("value", [*SWITCHED_OFF, "", "1", "yes"])
def test_hook_does_nothing_where_the_variable_switches_it_off(value: str, harness: Path, hook_alone: Path) -> None:
    code = f"""
        import os
        os.environ["LM_EVAL_TANDEM_HOOK"] = {value!r}
        before = list(sys.meta_path)
        from _lm_eval_tandem_hook import install
        install()
        waits = sys.meta_path != before
        import lm_eval.models
        install()  # also where the module has been imported already
        from lm_eval.api.registry import model_registry
        print(waits, "tandem" in model_registry)
    """
    expected = "False False" if value in SWITCHED_OFF else "True True"
    assert python(code, "-S", path=[harness, hook_alone]).strip() == expected


# --- the .pth file, in interpreters of their own


def bare_venv(folder: Path) -> tuple[Path, Path]:
    """An empty environment: its interpreter and its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=1200)
    interpreter = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    command = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return interpreter, Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return bare_venv(tmp_path_factory.mktemp("venv"))


def start(interpreter: Path, *options: str, code: str, **variables: str) -> str:
    """What the code prints in a fresh interpreter, with the given environment variables set."""
    command = [str(interpreter), *options, "-c", textwrap.dedent(code)]
    environment = {**os.environ, **variables}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr, ended.stderr
    return ended.stdout.strip()


def test_pth_file_never_breaks_an_interpreter(venv: tuple[Path, Path], harness: Path) -> None:
    interpreter, site = venv
    hook, pth = site / hook_source().name, site / pth_source().name
    waiting = "import sys; print(sum(type(finder).__name__ == 'Finder' for finder in sys.meta_path))"
    try:
        pth.write_bytes(pth_source().read_bytes())
        assert start(interpreter, code=waiting) == "0", "the module of the hook is missing"
        hook.write_text("1 / 0")
        assert start(interpreter, code=waiting) == "0", "the module of the hook is broken"
        hook.write_bytes(hook_source().read_bytes())
        assert start(interpreter, code=waiting) == "1"
        assert start(interpreter, "-I", code=waiting) == "1"
        assert start(interpreter, "-S", code=waiting) == "0"
        assert start(interpreter, code=waiting, LM_EVAL_TANDEM_HOOK="0") == "0", "the hook is switched off"
        (site / "second_copy.pth").write_bytes(pth_source().read_bytes())
        assert start(interpreter, code=waiting) == "1", "two copies wait once"
        attempt = "try:\n import lm_eval.models\nexcept ImportError as error:\n print(error)"
        assert start(interpreter, code=attempt) == "No module named 'lm_eval'"
        (site / "harness.pth").write_text(f"{harness}\n")
        registered = "import lm_eval.models as m; print(m.model_registry['tandem'])"
        assert start(interpreter, code=registered) == "lm_eval_tandem.model:TandemLM"
    finally:
        for file in (hook, pth, site / "second_copy.pth", site / "harness.pth"):
            file.unlink(missing_ok=True)


def test_hook_imports_nothing_that_site_has_not_loaded_before() -> None:
    code = """
        import os
        known = set(sys.modules)
        from _lm_eval_tandem_hook import install
        install()
        print(sorted(set(sys.modules) - known))
    """
    assert python(code, "-S", path=[hook_source().parent]).strip() == "['_lm_eval_tandem_hook']"


def test_hook_costs_an_interpreter_under_2_ms(hook_alone: Path) -> None:
    """CPU time of the .pth line as `site` runs it, with `os` loaded and the hook's module compiled as pip leaves it."""
    py_compile.compile(str(hook_alone / hook_source().name), doraise=True)
    code = f"""
        import os, time
        with open({str(pth_source())!r}) as file:
            line = file.read()
        start = time.process_time()
        exec(line)
        print(time.process_time() - start)
        assert any(type(finder).__name__ == "Finder" for finder in sys.meta_path)
    """
    seconds = [float(python(code, "-S", path=[hook_alone])) for _ in range(9)]
    assert statistics.median(seconds) < 0.002


# --- against lm-eval itself


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_real_harness_knows_all_models_of_its_own_and_this_one_unless_switched_off(value: str) -> None:
    pytest.importorskip("lm_eval")
    code = f"""
        import os
        os.environ["LM_EVAL_TANDEM_HOOK"] = {value!r}
        sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "Finder"]
        from _lm_eval_tandem_hook import install
        install()
        import lm_eval.models
        from lm_eval.api.registry import model_registry
        assert {{"hf", "vllm", "dummy"}} <= set(model_registry.keys())
        print("tandem" in model_registry, "torch" in sys.modules)
    """
    assert python(code, path=[hook_source().parent]).strip() == f"{value == '1'} False"


def test_the_bare_command_line_does_not_know_the_model_where_the_hook_is_switched_off() -> None:
    pytest.importorskip("lm_eval")
    if "_lm_eval_tandem_hook" not in python("print(*sys.modules)").split():
        pytest.skip("lm_eval_tandem is not installed from a wheel here, so bare lm_eval does not know it")
    code = """
        import lm_eval.__main__, lm_eval.models
        from lm_eval.api.registry import model_registry
        print("tandem" in model_registry)
    """
    interpreter = Path(sys.executable)
    assert start(interpreter, code=code) == "True"
    assert start(interpreter, code=code, LM_EVAL_TANDEM_HOOK="off") == "False"
