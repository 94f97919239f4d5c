"""`python tests/processors.py PATHS`: the tests under every kind of processor that this one can imitate.

Sums of floats depend on how many of them a processor adds at once, and the libraries choose that at their start: so
each kind is a run of its own, told by environment variables which instructions it has to do without.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from numpy._core import _multiarray_umath as numpy_core

KINDS: dict[str, dict[str, str]] = {
    "AVX-512": {},
    "AVX2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL",
    },
    "none": {
        "OPENBLAS_CORETYPE": "Prescott",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX",
    },
}
"""What tells the libraries to be no better than a kind: OpenBLAS, torch with its two, and C's exp and log."""
CAPABILITY = {"AVX-512": "AVX512", "AVX2": "AVX2", "none": "DEFAULT"}
"""What torch then calls its own."""
TOLD = "import torch; print(torch.backends.cpu.get_cpu_capability())"


def known() -> list[str]:
    """The kinds that this processor has or can imitate, the best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags = numpy_core.__cpu_features__
    better = {"AVX-512": flags.get("AVX512F", False) or flags.get("X86_V4", False), "AVX2": flags["AVX2"]}
    return [kind for kind in KINDS if better.get(kind, True)]


def environment(kind: str) -> dict[str, str]:
    """The variables under which a process takes its processor for one of a kind."""
    there = [name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__.get(name)]
    if kind == "AVX2":
        there = [name for name in there if name.startswith("AVX512") or name == "X86_V4"]
    disabled = {} if kind == "AVX-512" or not there else {"NPY_DISABLE_CPU_FEATURES": " ".join(there)}
    return {**os.environ, **KINDS[kind], **disabled}


def main(paths: list[str]) -> int:
    """Run the tests once a kind; returns 1 where any of them fails, or a kind is not imitated."""
    failed = []
    if not known():
        print(f"{platform.machine()} imitates no other processor; the tests run as it is.", flush=True)
        return subprocess.run([sys.executable, "-m", "pytest", *paths], check=False).returncode
    for kind in known():
        variables = environment(kind)
        told = subprocess.run([sys.executable, "-c", TOLD], env=variables, capture_output=True, text=True, check=True)
        print(f"--- {kind}: torch says {told.stdout.strip()}", flush=True)
        if told.stdout.strip() != CAPABILITY[kind]:
            failed.append(f"{kind} (not imitated)")
        elif subprocess.run([sys.executable, "-m", "pytest", *paths], env=variables, check=False).returncode:
            failed.append(kind)
    print(f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(known())}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(Path(__file__).parent / "reports")]))
