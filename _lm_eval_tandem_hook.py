"""Make `lm_eval --model tandem` work typed bare on releases of lm-eval that discover no plugins.

`lm_eval_tandem_hook.pth` calls `install()` whenever an interpreter starts, so this module imports nothing but `sys`
and costs next to nothing. The finder waits for `lm_eval.models`, lets the module's own loader execute it, registers
the name and takes itself out of `sys.meta_path`. Where lm-eval is absent, or knows the name already (later releases
read the entry point), nothing changes.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

AWAITED = "lm_eval.models"
NAME = "tandem"
TARGET = "lm_eval_tandem.model:TandemLM"


def register() -> None:
    """Register the model lazily, unless the name is taken. `lm_eval.models` must have been executed before."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


class Finder:
    """A meta path finder that returns the spec the other finders find, with one execution of its loader followed."""

    def __init__(self) -> None:
        self.asking = False

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name != AWAITED or self.asking:
            return None
        self.asking = True  # another finder may ask the others too, and so us
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find(name, path, target) if finder is not self and find else None
                if spec is not None:
                    self.follow(spec)
                    return spec
            return None
        finally:
            self.asking = False

    def follow(self, spec: "ModuleSpec") -> None:
        """Shadow `exec_module` on this one loader, so that its type and all its other abilities stay what they are."""
        loader = spec.loader
        execute = getattr(loader, "exec_module", None)
        if execute is None or isinstance(loader, type):
            return

        def exec_module(module: "ModuleType") -> None:
            if module.__name__ != AWAITED:  # a loader may be shared, as that of a zip archive is
                return execute(module)
            vars(loader).pop("exec_module", None)
            execute(module)
            self.finish()

        try:
            loader.exec_module = exec_module  # type: ignore[method-assign, union-attr]
        except Exception:  # a loader that takes no attributes: the import goes on without us
            return

    def finish(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            register()
        except Exception:  # a registry of another shape must not make lm-eval unusable
            return


def install() -> None:
    """Wait for `lm_eval.models`, once per interpreter; register at once where it has been imported already."""
    if AWAITED in sys.modules:
        Finder().finish()
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
