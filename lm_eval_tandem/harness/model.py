"""The model `tandem` of lm-evaluation-harness: the cascade behind the harness's own interface.

`generate_until` turns the harness's requests into questions (`requests.py`), answers all of them at once
(`questions.py`), and writes the ledger. What the run was and did is in `run_report.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from lm_eval_tandem import errors, ledger
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import DEFAULT_VIEW, Engine, Role, ScoringView, registry
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.errors import (
    ArgumentError,
    ClassifierError,
    EngineError,
)
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.harness import arguments as model_arguments
from lm_eval_tandem.harness import run_report
from lm_eval_tandem.harness.distributed import Ranks
from lm_eval_tandem.harness.questions import Outcome, answer_all
from lm_eval_tandem.harness.requests import Answer, ChatPrompt, check_fits, tasks_of
from lm_eval_tandem.harness.settings import read_settings
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.store import Store

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4
"""Questions under way at once, in batches: enough that both engines always find a full batch waiting."""


class TandemLM(LM):
    """`--model tandem`: the mentor writes insights, a judge decides when they suffice, the intern answers.

    Everything that the harness asks of one model besides answers (likelihoods, chat templates, tokenizer) goes to the
    role that `loglikelihood` names. The arguments are described in `harness/arguments.py`.

    Raises
    ------
    TandemError
        In one sentence, before a model is loaded where that is possible.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        errors.print_plainly()
        self.settings = read_settings(arguments, registry.arguments)
        chosen = self.settings
        if chosen.ledger is not None:
            models = {name: role.label for name, role in chosen.roles.items() if role is not None}
            ledger.check_replaceable(chosen.ledger, str(chosen.policy), chosen.pair_name, models)
        self.ranks = Ranks()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world_size
        self.judge = self._load_judge() if chosen.policy.needs_judge else None
        view = DEFAULT_VIEW if self.judge is None else self.judge.view
        if self.judge is not None and chosen.intern is not None:
            registry.check_view(view, chosen.intern.backend, f"classifier={chosen.classifier}")
        with self.ranks.failing_together(), ExitStack() as opened:  # closed again where a later step fails
            self.store = Store(chosen.store) if chosen.store is not None else None
            if self.store is not None:
                opened.callback(self.store.close)
            self._mentor = self._load_engine(chosen.mentor, opened)
            self._intern = self._load_engine(chosen.intern, opened)
            self._check_intern(view)
            opened.pop_all()
        self.cascade = Cascade(
            mentor=self._with_store(self._mentor),
            intern=self._with_store(self._intern),
            prompts=chosen.policy.prompts(chosen.prompts),
            policy=chosen.policy,
            efforts=chosen.policy.efforts(chosen.efforts),
            judge=self.judge,
            record_features=bool(chosen.recorded),
            record_prompts=chosen.recorded is True,
            prices={name: role.prices for name, role in chosen.roles.items() if role and role.prices},
            view=view,
            step_end=chosen.step_end,
        )
        self.records: list[Record] = []
        """One per question, of this process; at rank 0, after each call of `generate_until`, of all processes."""
        self._computed_elsewhere: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._loop = EventLoopThread()

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> TandemLM:
        """Make the model as the harness does; `arg_dict` gets the run's name, which names the folder of results.

        What stands in `arg_dict` (--model_args) goes before what the harness adds (--batch_size, --device).
        """
        lm = cls(**{name: value for name, value in (additional_config or {}).items() if value is not None} | arg_dict)
        arg_dict.setdefault("model", lm.settings.run_name)
        return lm

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> TandemLM:
        """Make the model from `--model_args` as text; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def use(self, policy: str) -> None:
        """Switch to another policy that needs no judge, with the same engines; the records start anew."""
        given = self.settings
        chosen = Policy.parse(policy, len(given.efforts))
        self.settings = replace(given, policy=chosen)
        prompts, efforts = chosen.prompts(given.prompts), chosen.efforts(given.efforts)
        self.cascade = replace(self.cascade, policy=chosen, prompts=prompts, efforts=efforts)
        self.records = []

    def record_hidden(self) -> None:
        """Let `record_features` include the intern's hidden states from now on.

        Raises
        ------
        ClassifierError
            The intern's engine does not report them.
        """
        assert self._intern is not None
        view = ScoringView(hidden=True)
        registry.prepare(self._intern, view, None, None, "collect --hidden")
        self.cascade = replace(self.cascade, view=view)

    def record_prompts(self) -> None:
        """Let `record_features` include the intern's statistics of its prompts from now on."""
        self.cascade = replace(self.cascade, record_prompts=True)

    def _load_engine(self, role: Role | None, opened: ExitStack) -> Engine | None:
        if role is None:
            return None
        engine = registry.load(role)
        opened.callback(engine.close)
        return engine

    def _check_intern(self, view: ScoringView) -> None:
        """Refuse an intern that cannot do what the judge needs, and load the judge's adapter into it."""
        if self._intern is None:
            return
        recorded, judge = self.settings.recorded, self.judge
        if (recorded is True or (judge is not None and judge.reads_prompt)) and self._intern.cannot_score:
            raise EngineError(self._intern.cannot_score)
        measured = recorded or (judge is not None and judge.probe is not None)
        if (measured or self.settings.policy.entropy is not None) and self._intern.cannot_measure:
            raise EngineError(self._intern.cannot_measure)
        if self.judge is not None:
            who = f"classifier={self.settings.classifier}"
            registry.prepare(self._intern, view, self.judge.width, self.judge.adapter, who)

    def _load_judge(self) -> Sufficiency:
        from lm_eval_tandem.judge import artefact  # imports scikit-learn, which only a judge needs

        chosen = self.settings
        if chosen.classifier is None:
            raise ClassifierError(
                f"policy={chosen.policy} needs a sufficiency classifier, and none is known for the pair "
                f"{chosen.pair_name}; fit one with `lm-eval-tandem collect` and `lm-eval-tandem fit` and give its "
                "folder as classifier=…, or use policy=stage:N, which needs none."
            )
        if chosen.thresholds is None:
            judge = artefact.load(chosen.classifier, stages=len(chosen.efforts) + 1).for_policy(chosen.policy.name)
        else:
            judge = replace(artefact.load(chosen.classifier), thresholds=chosen.thresholds)
        assert chosen.mentor is not None
        assert chosen.intern is not None
        fitted = judge.pair.get("mentor"), judge.pair.get("intern")
        ours = chosen.mentor.label, chosen.intern.label
        if fitted != ours:
            log.warning(
                "classifier=%s was fitted on the pair %s, so its scores mean little for %s; fit one on this pair with "
                "`lm-eval-tandem collect` and `lm-eval-tandem fit`.",
                chosen.classifier,
                " and ".join(map(str, fitted)),
                " and ".join(ours),
            )
        self._warn_of_other_setting(judge)
        return judge

    def _warn_of_other_setting(self, judge: Sufficiency) -> None:
        """Warn where the classifier was fitted on insights of other lengths or words than those of this run."""
        ours = run_report.setting(self.settings)
        for name, fitted in judge.config["fitted_on"].items():
            if name in ours and fitted != ours[name]:
                log.warning(
                    "classifier=%s was fitted with %s=%s, and this run has %s, so its scores mean little; give "
                    "the same, or fit one on this setting.",
                    self.settings.classifier,
                    name,
                    as_argument(fitted),
                    as_argument(ours[name]),
                )

    def _with_store(self, engine: Engine | None) -> Engine | None:
        return engine if engine is None or self.store is None else CachedEngine(engine, self.store)

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One answer per request, in the order of the requests.

        Raises
        ------
        ContextError
            Before anything runs: a prompt does not fit into a model's window.
        EngineError
            At the end: some questions failed; all others were answered and are in the ledger and the store.
        UnreachableError, StoreError
            No further question can be answered; finished answers are in the ledger and the store.
        """
        with self.ranks.failing_together():
            tasks = tasks_of(requests, self.max_answer_tokens, self.settings.seed)
            sizes = [check_fits(task, self.settings, self.engines) for task in tasks]
        answers: list[Answer | None] = [None] * len(tasks)

        def take(place: int, text: str, record: Record) -> None:
            answers[place] = Answer.of(text, record.metrics)

        outcome = self.answer_tasks(tasks, sizes, take, disable_tqdm)
        if self.world_size > 1:
            outcome = Outcome.merged(self.ranks.exchange(outcome))
            self._gather_records()
        outcome.check(self.settings.store)
        return [answer for answer in answers if answer is not None]

    def answer_tasks(
        self,
        tasks: Sequence[Task],
        sizes: Sequence[int],
        take: Callable[[int, str, Record], None],
        disable_tqdm: bool = False,
    ) -> Outcome:
        """Answer questions, the longest first; what fails for one fails that one alone.

        Parameters
        ----------
        tasks
            The questions.
        sizes
            The size of each one's prompt in tokens (`requests.check_fits`).
        take
            Called with each answer: the question's place in `tasks`, the text and the record.
        disable_tqdm
            Whether to show no progress.
        """
        started = time.perf_counter()
        longest_first = sorted(range(len(tasks)), key=lambda i: (-sizes[i], tasks[i].question.text))
        bar = tqdm(total=len(tasks), disable=disable_tqdm or self.rank != 0, desc=f"Running {self.settings.run_name}")

        def taken(place: int, text: str, record: Record) -> None:
            self.records.append(record)
            take(longest_first[place], text, record)
            bar.update(1)

        ordered = [tasks[i] for i in longest_first]
        try:
            with self.ranks.failing_together():
                return self._loop.run(answer_all(self.cascade, ordered, self._max_concurrency, taken))
        finally:
            bar.close()
            self._seconds += time.perf_counter() - started
            self._write_ledger()

    def _gather_records(self) -> None:
        """Collect at rank 0 the records and the work of all processes."""
        everyone = self.ranks.gather_object((self.records, self._computed_here(), self._seconds))
        if everyone is not None:
            self.records = [record for records, _, _ in everyone for record in records]
            self._computed_elsewhere = [computed for _, computed, _ in everyone[1:]]
            self._seconds = max(seconds for _, _, seconds in everyone)
            self._write_ledger()

    @property
    def _max_concurrency(self) -> int:
        return BATCHES_IN_FLIGHT * max(engine.max_concurrency for engine in self.engines.values() if engine is not None)

    def _write_ledger(self) -> None:
        path = self.settings.ledger
        if path is None or self.rank != 0:
            return
        try:
            ledger.write(path, self.records, self.description)
        except OSError as error:  # answers are worth more than the ledger about them
            log.error("ledger=%s could not be written (%s); the run goes on without it.", path, error)

    # What the harness asks of one model goes to the role that answers loglikelihood requests

    @property
    def max_answer_tokens(self) -> int:
        """The longest answer, in tokens, where nothing else is asked for."""
        tokens: int = self._answering.max_gen_toks
        return tokens

    @property
    def _answering(self) -> Any:
        engine = self._mentor if self.settings.loglikelihood == "mentor" else self._intern
        assert engine is not None
        return engine.lm

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse `--use_cache`: its keys hold the prompt alone, so another policy would get old answers.

        Raises
        ------
        ArgumentError
            Always, where a cache is asked for.
        """
        if cache_hook.dbdict is not None:
            raise ArgumentError(
                "--use_cache distinguishes prompts but not policies, models or thresholds, so it would return old "
                "answers; leave it out and give store=FILE in --model_args, whose keys hold all of these."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Answered by one role alone (`loglikelihood=`); nothing is cascaded."""
        with self.ranks.failing_together():
            values: list[tuple[float, bool]] = self._answering.loglikelihood(requests, disable_tqdm=disable_tqdm)
        return values

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Answered by one role alone (`loglikelihood=`); nothing is cascaded."""
        with self.ranks.failing_together():
            values: list[float] = self._answering.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return values

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatPrompt:
        """The conversation, for each role to render later; its text is the answering model's rendering."""
        engine = self.engines[self.settings.loglikelihood]
        assert engine is not None
        messages = tuple((turn["role"], turn["content"]) for turn in chat_history)
        rendered = engine.render(messages, add_generation_prompt)
        return ChatPrompt.of(rendered, chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the answering model; every role's is set."""
        for engine in (self._mentor, self._intern):
            if engine is not None and engine.lm is not None:
                engine.lm.chat_template(chat_template)
        template: str | None = self._answering.chat_template(chat_template)
        return template

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizers, for the harness's request cache."""
        engines = [engine for engine in (self._mentor, self._intern) if engine is not None]
        names = [engine.name if engine.lm is None else engine.lm.tokenizer_name for engine in engines]
        return "tandem--" + "--".join(names)

    @property
    def tokenizer(self) -> Any:
        """The answering model's tokenizer."""
        return self._answering.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The answering model's end token."""
        return int(self._answering.eot_token_id)

    @property
    def max_length(self) -> int:
        """The answering model's window in tokens."""
        return int(self._answering.max_length)

    @property
    def device(self) -> Any:
        """The answering model's device."""
        return self.ranks.device or self._answering.device

    def all_gather(self, tensor: Any) -> Any:
        """The tensors of all ranks."""
        return self.ranks.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks, at rank `dst`."""
        return self.ranks.gather_object(obj, dst)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.ranks.barrier()

    # What the run was and did

    @property
    def engines(self) -> dict[str, Engine | None]:
        """The engine of each role, without the store around it; None for a role that the policy does not need."""
        return {"mentor": self._mentor, "intern": self._intern}

    @property
    def description(self) -> dict[str, Any]:
        """What ran: pair, policy, efforts, thresholds, classifier, parameters, versions."""
        return run_report.description(self.settings, self.engines, self.judge)

    def totals(self) -> dict[str, Any]:
        """What the run did: the ledger's totals, and what the engines computed in all its processes."""
        return run_report.totals(self.records, (self._computed_here(), *self._computed_elsewhere), self._seconds)

    def _computed_here(self) -> dict[str, Any]:
        return run_report.computed(self.engines, self.cascade, self.store)

    def get_model_info(self) -> dict[str, Any]:
        """Goes into `config` of the harness's results file."""
        self._write_ledger()
        return {"tandem": {**self.description, "totals": self.totals()}}

    def close(self) -> None:
        """End the engines' threads and close the store."""
        for engine in (self._mentor, self._intern):
            if engine is not None:
                engine.close()
        self._loop.close()
        if self.store is not None:
            self.store.close()


def as_argument(value: Any) -> str:
    """A value as it is written in `--model_args`."""
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)


TandemLM.__doc__ = f"{TandemLM.__doc__}\n{model_arguments.docstring()}\n"
TandemLM.__signature__ = model_arguments.signature()  # type: ignore[attr-defined]
