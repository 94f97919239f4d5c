"""What setup.cfg cannot say: the wheel carries two folders that lie beside the package, and an import hook."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "lm_eval_tandem"
FOLDERS = ("task_configs", "classifiers")
HOOK = "lm_eval_tandem_hook.pth"


def carried() -> list[Path]:
    """Files of the two folders, relative to the root, without caches and hidden files."""
    files = (path.relative_to(ROOT) for name in FOLDERS for path in sorted((ROOT / name).rglob("*")) if path.is_file())
    return [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]


class BuildWithFolders(build_py):
    """Also builds `lm_eval_tandem/task_configs`, `lm_eval_tandem/classifiers` and the `.pth` file."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            self.install_hook_beside_editable()
            return
        shutil.rmtree(Path(self.build_lib, PACKAGE), ignore_errors=True)  # nothing stale from a build before
        super().run()
        for source, target in self.copies().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / source, target)

    def copies(self) -> dict[Path, Path]:
        """Source, relative to the root, to target in the build folder."""
        built = Path(self.build_lib)
        return {Path(HOOK): built / HOOK} | {path: built / PACKAGE / path for path in carried()}

    def install_hook_beside_editable(self) -> None:
        """An editable install takes no file from the build folder, but whatever lies where it unpacks its own wheel."""
        unpacked = getattr(self.distribution.get_command_obj("install"), "install_purelib", None)
        if unpacked and Path(unpacked).is_dir():
            shutil.copyfile(ROOT / HOOK, Path(unpacked, HOOK))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else outputs + [str(target) for target in self.copies().values()]

    def get_source_files(self) -> list[str]:
        files: list[str] = super().get_source_files()
        return [*files, HOOK, *map(str, carried())]


setup(cmdclass={"build_py": BuildWithFolders})
