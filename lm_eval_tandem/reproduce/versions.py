"""The versions of what a run ran on, beside those that are installed here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from lm_eval_tandem import __version__
from lm_eval_tandem.engines.identity import ENGINE_PACKAGES
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.runs import models_of
from lm_eval_tandem.reproduce.fact import Fact


def of(run: RecordedRun) -> list[Fact]:
    """Return the versions of this package, of lm_eval, of Python and of what the models ran on."""
    described = run.description
    then: dict[str, str | None] = {"lm_eval": run.results.get("lm_eval_version")}
    if described:
        then = {"lm-eval-tandem": described.get("version"), **then}
    for facts in models_of(described).values():
        then |= {name: str(facts[name]) for name in ENGINE_PACKAGES if name in facts and then.get(name) is None}
    if run.results.get("transformers_version") and not described:
        then["transformers"] = run.results["transformers_version"]
    then |= described.get("versions") or {}
    return [version_fact(name, value) for name, value in then.items()]


def version_fact(package: str, then: str | None) -> Fact:
    """Return the version of a package then and now."""
    now = installed(package)
    difference = ""
    if then is not None and now is None:
        difference = f"{package} was {then} and is not installed here."
    elif then is not None and now != then:
        difference = f"{package} was {then} and is {now} here."
    return Fact(package, then, now, difference)


def installed(package: str) -> str | None:
    """Return the version of a package here; None where it is not installed."""
    if package == "python":
        return platform.python_version()
    if package == "lm-eval-tandem":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None
