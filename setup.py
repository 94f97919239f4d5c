"""Build steps that setup.cfg cannot express: the wheel also holds two folders from beside the package, and a hook.

`task_configs/` and `classifiers/` go into the package; `lm_eval_tandem_hook.pth` goes beside it, where Python
reads it at its start.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "lm_eval_tandem"
FOLDERS = ("task_configs", "classifiers")
HOOK = "lm_eval_tandem_hook.pth"


def folder_files() -> list[Path]:
    """Return the files of the two folders, relative to the root, without caches and hidden files."""
    files = (path.relative_to(ROOT) for name in FOLDERS for path in sorted((ROOT / name).rglob("*")) if path.is_file())
    return [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]


class BuildWithFolders(build_py):
    """The command `build_py`, which also builds the two folders and the `.pth` file."""

    def run(self) -> None:
        """Build the package, then copy the folders and the `.pth` file."""
        if self.editable_mode:
            super().run()
            self.install_hook_beside_editable()
            return
        shutil.rmtree(Path(self.build_lib, PACKAGE), ignore_errors=True)  # no stale files of an earlier build
        super().run()
        for source, target in self.copies().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / source, target)

    def copies(self) -> dict[Path, Path]:
        """Return the target in the build folder for each source, relative to the root."""
        built = Path(self.build_lib)
        return {Path(HOOK): built / HOOK} | {path: built / PACKAGE / path for path in folder_files()}

    def install_hook_beside_editable(self) -> None:
        """Copy the `.pth` file to where an editable install unpacks its wheel; it ignores the build folder."""
        unpacked = getattr(self.distribution.get_command_obj("install"), "install_purelib", None)
        if unpacked and Path(unpacked).is_dir():
            shutil.copyfile(ROOT / HOOK, Path(unpacked, HOOK))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the built files, for the list of installed files."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else outputs + [str(target) for target in self.copies().values()]

    def get_source_files(self) -> list[str]:
        """Return the source files, for the source distribution."""
        files: list[str] = super().get_source_files()
        return [*files, HOOK, *map(str, folder_files())]


setup(cmdclass={"build_py": BuildWithFolders})
