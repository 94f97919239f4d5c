"""Makes plain `lm_eval --model tandem` (and `ensemble`) work with releases of lm-eval that do not look for plugins.

`lm_eval_tandem_hook.pth` calls `install()` whenever a Python interpreter starts, so this module imports only `sys` and
`os` (which is always loaded by then) and costs next to nothing. `install` puts a finder on `sys.meta_path` that waits
for the import of `lm_eval.models`, lets it run as usual, registers the models' names and removes itself. Where lm-eval
is not installed, or already knows a name, nothing changes.

The environment variable LM_EVAL_TANDEM_HOOK=0 (or false, off, no, in any case) switches the hook off;
`python -m lm_eval_tandem` knows the models all the same.

lm-eval 0.4.13 reads no entry points, and its development version of August 2026 reads none of the group
`lm_eval.models` either; its pull requests 4013 and 4014 are to, and are in no release so far. This package declares
that entry point already, and once a release reads it the hook has nothing to do.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE = "LM_EVAL_TANDEM_HOOK"
"""Environment variable that switches the hook off."""
OFF = ("0", "false", "off", "no")
"""Values of the variable, in any case, that switch the hook off."""
AWAITED_MODULE = "lm_eval.models"
MODELS = {"tandem": "lm_eval_tandem.model:TandemLM", "ensemble": "lm_eval_tandem.model:EnsembleLM"}
"""The models by name, each with its import path."""


def install() -> None:
    """Register the models as soon as `lm_eval.models` has been imported; do nothing where the hook is switched off."""
    if os.environ.get(VARIABLE, "").strip().lower() in OFF:
        return
    if AWAITED_MODULE in sys.modules:
        Finder().withdraw_and_register()
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def register() -> None:
    """Register each model by its import path, unless its name is taken. `lm_eval.models` must have been imported."""
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


class Finder:
    """A meta path finder that waits for the import of `lm_eval.models`.

    It returns the spec that the other finders return; only that spec's loader is changed, for one execution.
    """

    def __init__(self) -> None:
        self.searching = False

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the other finders' spec of `lm_eval.models`, its loader wrapped, and None for any other module."""
        if name != AWAITED_MODULE or self.searching:
            return None
        self.searching = True  # another finder may ask all finders too, and so call this method again
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find(name, path, target) if finder is not self and find else None
                if spec is not None:
                    self.wrap_loader(spec)
                    return spec
            return None
        finally:
            self.searching = False

    def wrap_loader(self, spec: "ModuleSpec") -> None:
        """Make the loader call this finder after it has executed the module.

        Only the attribute `exec_module` of this one loader is replaced, and restored when it is called, so that the
        loader keeps its type and everything else it can do.
        """
        loader = spec.loader
        execute = getattr(loader, "exec_module", None)
        if execute is None or isinstance(loader, type):
            return

        def exec_module(module: "ModuleType") -> None:
            if module.__name__ != AWAITED_MODULE:  # a loader may serve several modules, as that of a zip archive does
                return execute(module)
            vars(loader).pop("exec_module", None)
            execute(module)
            self.withdraw_and_register()

        try:
            loader.exec_module = exec_module  # type: ignore[method-assign, union-attr]
        except Exception:  # a loader that accepts no attributes: the import continues without this hook
            return

    def withdraw_and_register(self) -> None:
        """Take this finder off `sys.meta_path` and register the models."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            register()
        except Exception:  # lm-eval must stay usable where its registry has changed
            return
