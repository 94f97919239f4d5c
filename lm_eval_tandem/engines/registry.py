"""From a role's backend to its engine: `hf`, `vllm`, `openai`, `llamacpp`, or another model registered with lm_eval.

An engine's module is imported only when a role uses it, so vLLM, openai, llama.cpp and peft stay optional. Everything
that can be refused before a model is loaded is refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path

from lm_eval_tandem.engines import DEFAULT_VIEW, Engine, Role, ScoringView
from lm_eval_tandem.engines.http.options import IGNORED, Options
from lm_eval_tandem.engines.llamacpp.arguments import LlamaArguments
from lm_eval_tandem.errors import ArgumentError, ClassifierError, install, loading

BACKENDS = ("hf", "vllm", "openai", "llamacpp")
SCORING_VIEW_BACKENDS = ("hf",)
"""Backends whose engines support other views of a prompt than the default one: hidden states, adapters, confidence."""
THOUGHT_HAS_TO_END = ("hf", "vllm")
"""Backends that have to be told how a model's thought ends, where it is switched on."""
FROM_PRETRAINED = (
    "attn_implementation",
    "device_map",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "low_cpu_mem_usage",
    "use_safetensors",
    "variant",
)
"""Arguments that lm-eval's HFLM passes to transformers beside those in its own signature."""


def arguments(backend: str) -> Collection[str] | None:
    """Names of the arguments that a backend accepts; None where it accepts any.

    Raises
    ------
    ArgumentError
        No backend has this name, or a package that it needs is not installed.
    """
    if backend == "hf":
        from lm_eval.models.huggingface import HFLM

        return (set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs", "backend"}) | {*FROM_PRETRAINED}
    if backend == "vllm":
        return vllm_arguments()
    if backend in ("openai", "llamacpp"):
        if find_spec("openai") is None:
            raise ArgumentError(f"backend={backend} needs the package openai; install it with {install(backend)}.")
        options = Options if backend == "openai" else LlamaArguments
        return {*options.names(), *IGNORED}
    from lm_eval_tandem.engines.http.registered import constructor_arguments

    accepted = constructor_arguments(backend)
    if accepted is None:
        known = ", ".join(BACKENDS)
        raise ArgumentError(f"backend={backend} is not known; use one of {known}, or a registered model of lm_eval.")
    return {*accepted, *IGNORED, "parameters"} - {"pretrained", "model"}


def vllm_arguments() -> set[str]:
    """Names of the arguments that backend=vllm accepts; refuses it where vLLM cannot be imported."""
    try:
        from lm_eval_tandem.engines.vllm.arguments import names
    except ImportError as error:
        raise ArgumentError(
            f"backend=vllm needs vLLM, which cannot be imported ({error}); "
            f"install it with {install('vllm')} (docs/engines.md), or use backend=hf."
        ) from error
    return names()


def check(roles: Mapping[str, Role | None]) -> None:
    """Refuse what can be known of the models' arguments before the first of them is loaded.

    Parameters
    ----------
    roles
        The models by name; None for one that the run does not use.

    Raises
    ------
    ArgumentError
        A value is not known, or lacks another one that it needs.
    """
    for name, role in roles.items():
        if role is None:
            continue
        if role.backend in THOUGHT_HAS_TO_END and role.arguments.get("enable_thinking"):
            check_think_end(name, role)
        if role.backend == "hf":
            from lm_eval_tandem.engines.hf.loading import check_arguments

            check_arguments(role.arguments, name)


def check_think_end(name: str, role: Role) -> None:
    """Refuse a model that is to think, and of which nobody has said how its thought ends."""
    if role.arguments.get("think_end_token") is None:
        raise ArgumentError(
            f"{name} is to think (enable_thinking), and with backend={role.backend} nothing tells where its thought "
            "ends and its answer begins; give think_end_token=… in --model_args too, such as think_end_token=</think>, "
            "or in a file of the authors' toolkit think_end_token beside the model's path."
        )


def load(role: Role) -> Engine:
    """The engine of a role, with its model loaded.

    Raises
    ------
    EngineError
        The model cannot be loaded, or no server offers it.
    ArgumentError
        An argument has a wrong value.

    Examples
    --------
    >>> engine = load(Role("Qwen/Qwen3-0.6B", "hf", {"dtype": "bfloat16"}, label="Qwen3-0.6B"))
    """
    nowhere = role.backend == "hf" and not Path(role.model).exists()
    advice = (
        "; there is no such folder: give one, a GGUF file, or the id of a model that the hub has" if nowhere else ""
    )
    with loading(f"the model {role.model}", advice):
        return engine_of(role)


def engine_of(role: Role) -> Engine:
    """The engine of a role, by its backend."""
    if role.backend == "vllm":
        from lm_eval_tandem.engines.vllm.engine import VLLMEngine

        return VLLMEngine({"pretrained": role.model, **role.arguments})
    if role.backend == "openai":
        from lm_eval_tandem.engines.http.openai import APIEngine

        return APIEngine(role.model, role.arguments)
    if role.backend == "llamacpp":
        from lm_eval_tandem.engines.llamacpp.engine import LlamaEngine

        return LlamaEngine(role.model, role.arguments)
    if role.backend not in BACKENDS:
        from lm_eval_tandem.engines.http.registered import RegisteredEngine

        return RegisteredEngine(role.backend, role.model, role.arguments)
    from lm_eval_tandem.engines.hf.engine import HFEngine

    return HFEngine({"pretrained": role.model, **role.arguments})


def check_view(view: ScoringView, backend: str, who: str) -> None:
    """Refuse, before a model is loaded, a view that a model of this backend does not support.

    Parameters
    ----------
    view
        What the judge needs from the intern, or a selection from each of its models.
    backend
        The intern's, or the model's.
    who
        What needs the view, as the subject of the error message: "classifier=…", "collect --hidden", "selection=…".

    Raises
    ------
    ArgumentError
        The backend does not report confidence.
    ClassifierError
        The backend does not support the view, or peft is missing.
    """
    if view.confidence and backend not in SCORING_VIEW_BACKENDS:
        raise ArgumentError(
            f"{who} needs the probability of the most likely token at every place of a prompt, which backend={backend} "
            f"does not report; use models with backend={SCORING_VIEW_BACKENDS[0]}, or another selection."
        )
    if view != DEFAULT_VIEW and backend not in SCORING_VIEW_BACKENDS:
        raise ClassifierError(
            f"{who} needs the intern's hidden states, which intern_backend={backend} does not report; "
            f"use intern_backend={SCORING_VIEW_BACKENDS[0]}, or other inputs (fit --inputs statistics, for example)."
        )
    if view.adapter is not None:
        require_peft(who)


def require_peft(who: str) -> None:
    """Refuse what needs the package peft where it is not installed; `who` is the subject of the error message.

    Raises
    ------
    ClassifierError
        The package is missing.
    """
    if find_spec("peft") is None:
        raise ClassifierError(f"{who} needs the package peft; install it with {install('peft')}.")


def prepare(intern: Engine, view: ScoringView, width: int | None, adapter: Path | None, who: str) -> None:
    """Make a loaded intern ready for a view: check the width of its hidden states and load the view's adapter.

    Parameters
    ----------
    intern
        An engine of a backend that `check_view` has accepted.
    view
        What the judge needs from the intern.
    width
        D, the expected size of a hidden state; None for any.
    adapter
        Folder of the view's LoRA adapter.
    who
        What needs the view, as the subject of the error message.

    Raises
    ------
    ClassifierError
        The intern has hidden states of another size or none, or the adapter was trained for another model.
    """
    if not view.hidden and view.adapter is None:  # nothing of it depends on this model
        return
    from lm_eval_tandem.engines.hf.engine import HFEngine

    assert isinstance(intern, HFEngine)
    if intern.hidden_size is None or width not in (None, intern.hidden_size):
        raise ClassifierError(
            f"{who} reads hidden states of {width or 'any'} numbers, but {intern.name} has "
            f"{intern.hidden_size or 'no known output layer, so none'}; use the intern that it was fitted on."
        )
    if view.adapter is not None and adapter is not None:
        intern.load_adapter(adapter, view.adapter)
