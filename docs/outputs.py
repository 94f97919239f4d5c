"""Keep the program output in README.md and docs/ true: run each block's command and compare, or rewrite.

A block follows a comment that names its command. It is fenced, or, where the output is Markdown itself, ends at a
second comment:

    <!-- output of: lm-eval-tandem --help -->
    ```text
    usage: lm-eval-tandem …
    ```

    <!-- output of: lm-eval-tandem report runs -->
    | policy | accuracy % | …
    <!-- end of output -->

In a command, `{above}` stands for the last `sh` block before the comment, so that a page shows a command and its output
without writing the command twice. Commands run with bash in the repository root; the programs beside this interpreter
are first on PATH, and `make` uses its environment: what is documented is what is installed there, so run `make docs`
first, which installs the checkout. Only standard output counts. What differs from machine to machine (seconds, paths,
versions) has to be cut by the command itself: the comparison is exact.

    python docs/outputs.py --check [FILE …]     exit code 1, and a diff, where a block is not what its command prints
    python docs/outputs.py --write [FILE …]     rewrite such blocks
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
OUTPUT_BLOCK = re.compile(
    r"^<!-- output of:\s+(?P<command>.+?)\s*-->\n"
    r"(?:(?P<fence>```\w*\n)(?P<fenced>.*?)^```$|(?P<markdown>.*?)^<!-- end of output -->$)",
    re.M | re.S,
)
JOBS = 2
"""Files checked at once. Blocks of one file run in order: a later one may need what an earlier one wrote."""


def environment() -> dict[str, str]:
    """Variables that make output the same everywhere; one thread each, since two files are checked at once."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    fixed = {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    return {**os.environ, **fixed, "PATH": programs, "VENV": sys.prefix}


def run(command: str) -> str:
    """Return the standard output of a command, without spaces at line ends.

    Raises
    ------
    RuntimeError
        The command failed or printed nothing.
    """
    script = f"set -eo pipefail\n{command}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True)  # noqa: S603, S607
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"exit code {done.returncode}, and on standard error:\n{done.stderr[-2000:]}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())


def command_of(block: re.Match[str]) -> str:
    """Return the command of a block, `{above}` replaced by the last `sh` block before it."""
    command = block["command"]
    if "{above}" in command:
        *_, above = SHELL_BLOCK.findall(block.string[: block.start()])
        command = command.replace("{above}", "{\n" + above + "}")
    return command


def renewed(text: str, run: Callable[[str], str] = run) -> str:
    """Return the text of a page with every output block replaced by what its command prints now."""

    def replace(block: re.Match[str]) -> str:
        before = block[0][: block.start("fenced" if block["fence"] else "markdown") - block.start()]
        output = run(command_of(block))
        return before + (output + "```" if block["fence"] else f"\n{output}\n<!-- end of output -->")

    return OUTPUT_BLOCK.sub(replace, text)


def main() -> int:
    """Check or rewrite the files named on the command line (default: all); return the exit code."""
    parser = argparse.ArgumentParser(description="Compare output blocks of the documentation with their commands.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="show a diff and fail where a block differs")
    mode.add_argument("--write", action="store_true", help="rewrite the blocks that differ")
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md, CONTRIBUTING.md, SECURITY.md, docs/")
    given = parser.parse_args()
    files = given.files or [file for pattern in FILES for file in sorted(ROOT.glob(pattern))]
    pages = {file: text for file in files if OUTPUT_BLOCK.search(text := file.read_text(encoding="utf-8"))}

    def attempt(text: str) -> str | RuntimeError:
        try:
            return renewed(text)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(JOBS) as pool:
        results = dict(zip(pages, pool.map(attempt, pages.values()), strict=True))
    failed = False
    for file, result in results.items():
        if isinstance(result, RuntimeError):
            failed = True
            print(f"{file}: a command failed: {result}", file=sys.stderr)
        elif result != pages[file] and given.write:
            file.write_text(result, encoding="utf-8")
            print(f"{file}: rewritten")
        elif result != pages[file]:
            failed = True
            lines = (pages[file].splitlines(keepends=True), result.splitlines(keepends=True))
            sys.stdout.writelines(difflib.unified_diff(*lines, f"{file} (committed)", f"{file} (now)"))
    if failed:
        print("Output in the documentation is out of date; python docs/outputs.py --write renews it.", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
