"""What every model of this package is to the harness: requests in, answers out, records into a ledger.

`generate_until` turns the harness's requests into questions (`requests.py`), answers all of them at once
(`questions.py`), and writes the ledger. Everything that the harness asks of one model besides answers (likelihoods,
chat templates, tokenizer) goes to one of the run's models. `TandemLM` and `EnsembleLM` say which models there are and
what answers a question with them; what the run was and did is in `run_report.py`.
"""

from __future__ import annotations

import logging
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from lm_eval_tandem import errors, ledger_file
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine, Role, registry
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.event_loop import EventLoopThread, Submitted
from lm_eval_tandem.harness import run_report
from lm_eval_tandem.harness.distributed import Ranks
from lm_eval_tandem.harness.questions import Answerer, Outcome, answer_all
from lm_eval_tandem.harness.requests import Answer, ChatPrompt, tasks_of
from lm_eval_tandem.harness.settings import check_values
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.ledger_checksums import checksums, of_answer
from lm_eval_tandem.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCHES_IN_FLIGHT = 4
"""Questions under way at once, in batches: enough that every engine always finds a full batch waiting."""


class RunSettings(Protocol):
    """What the settings of a run say, whatever answers its questions."""

    @property
    def run_name(self) -> str:
        """How results call the run."""
        ...

    @property
    def seed(self) -> int:
        """Of sampling."""
        ...

    @property
    def store(self) -> Path | None:
        """File of finished calls; None for none."""
        ...

    @property
    def ledger(self) -> Path | None:
        """File of the records; None for none."""
        ...


class AnsweringLM(LM):
    """A model of the harness behind which several models answer.

    A subclass calls `_begin` and `_open_store` before it loads anything, sets `_loop` once it can answer, and defines
    the abstract members.

    Attributes
    ----------
    settings
        Of the run.
    records
        One per question, of this process; at rank 0, after each call of `generate_until`, of all processes.
    ranks
        The processes of the run.
    store
        Finished calls; None without one.
    """

    registered_name: ClassVar[str]
    """The name of this model in `--model`."""
    settings: RunSettings
    store: Store | None
    _loop: EventLoopThread

    def _begin(self) -> None:
        """Set up what needs no model."""
        errors.print_plainly(self.registered_name)
        self.ranks = Ranks()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world_size
        self.records: list[Record] = []
        self._computed_elsewhere: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._has_warned_of_rendering = False

    @property
    @abstractmethod
    def engines(self) -> Mapping[str, Engine | None]:
        """The engine of each model by its name, without the store around it; None for one that the run does not use."""

    @property
    @abstractmethod
    def answerer(self) -> Answerer:
        """What answers a question."""

    @property
    @abstractmethod
    def called(self) -> Sequence[Engine]:
        """The engines that `answerer` calls, with the store around them where there is one."""

    @property
    @abstractmethod
    def answering(self) -> Engine:
        """The engine of the model that the harness takes this one for, and that answers likelihoods."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What ran: models, settings, versions."""

    @abstractmethod
    def check_fits(self, task: Task) -> int:
        """The size of a question's prompt in tokens; raises ContextError where it cannot fit into a window."""

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model as the harness does; `arg_dict` gets the run's name, which names the folder of results.

        What stands in `arg_dict` (--model_args) goes before what the harness adds (--batch_size, --device).
        """
        check_values(arg_dict, "model_args")
        lm = cls(**{name: value for name, value in (additional_config or {}).items() if value is not None} | arg_dict)
        # of other characters, a plus sign among them, the harness makes addresses on a hub that it then does not find
        arg_dict.setdefault("model", re.sub(r"[^\w.-]", "_", lm.settings.run_name, flags=re.ASCII))
        return lm

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model from `--model_args` as text; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def _open_store(self, opened: ExitStack) -> None:
        self.store = Store(self.settings.store) if self.settings.store is not None else None
        if self.store is not None:
            opened.callback(self.store.close)

    def _load_engine(self, role: Role, opened: ExitStack) -> Engine:
        engine = registry.load(role)
        opened.callback(engine.close)
        return engine

    def _with_store(self, engine: Engine) -> Engine:
        return engine if self.store is None else CachedEngine(engine, self.store)

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
            sizes = [self.check_fits(task) for task in tasks]
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
            record.answer_sha256 = of_answer(text)
            self.records.append(record)
            take(longest_first[place], text, record)
            bar.update(1)

        ordered, former = [tasks[i] for i in longest_first], len(self.records)
        try:
            with self.ranks.failing_together():
                outcome = self._loop.run(answer_all(self.answerer, ordered, self.max_under_way, taken))
        finally:
            bar.close()
            self._seconds += time.perf_counter() - started
            self._write_ledger()
        answered = self.records[former:]
        for sentence in (*self.warnings(answered).values(), run_report.cut_answers(answered)):
            if sentence:
                log.warning("%s", sentence)
        return outcome

    def compare_rendering(self, task: Task) -> None:
        """Warn, once, of questions that are rendered otherwise than those by which the run decides."""
        if not self._has_warned_of_rendering and (sentence := self._other_rendering(task)):
            self._has_warned_of_rendering = True
            log.warning("%s", sentence)

    @abstractmethod
    def _other_rendering(self, task: Task) -> str:
        """What to warn of if this question is rendered otherwise; "" where it is not, or that is not known."""

    def warnings(self, records: Sequence[Record]) -> dict[str, str]:
        """What to warn of once these questions have been answered, which their answers alone do not show.

        Returns
        -------
        dict
            A sentence for each kind of warning, by a name of the kind.
        """
        return {}

    def _gather_records(self) -> None:
        """Collect at rank 0 the records and the work of all processes."""
        everyone = self.ranks.gather_object((self.records, self._computed_here(), self._seconds))
        if everyone is not None:
            self.records = [record for records, _, _ in everyone for record in records]
            self._computed_elsewhere = [computed for _, computed, _ in everyone[1:]]
            self._seconds = max(seconds for _, _, seconds in everyone)
            self._write_ledger()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Submitted[T]:
        """Start a coroutine in the event loop in which questions are answered; for whoever asks one by one."""
        return self._loop.submit(coroutine)

    @property
    def max_under_way(self) -> int:
        """Number of questions that keep all engines busy at once."""
        return BATCHES_IN_FLIGHT * max(engine.max_concurrency for engine in self.engines.values() if engine is not None)

    def _write_ledger(self) -> None:
        path = self.settings.ledger
        if path is None or self.rank != 0:
            return
        try:
            ledger_file.write(path, self.records, self._described())
        except OSError as error:  # answers are worth more than the ledger about them
            log.error("ledger=%s could not be written (%s); the run goes on without it.", path, error)

    # What the harness asks of one model

    @property
    def max_answer_tokens(self) -> int:
        """The longest answer, in tokens, where nothing else is asked for."""
        tokens: int = self._answering.max_gen_toks
        return tokens

    @property
    def _answering(self) -> Any:
        """lm-eval's own model of that engine."""
        return self.answering.lm

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
        """Answered by one model alone (`loglikelihood=`)."""
        with self.ranks.failing_together():
            values: list[tuple[float, bool]] = self._answering.loglikelihood(requests, disable_tqdm=disable_tqdm)
        return values

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Answered by one model alone (`loglikelihood=`)."""
        with self.ranks.failing_together():
            values: list[float] = self._answering.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return values

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatPrompt:
        """The conversation, for each model to render later; its text is the answering model's rendering."""
        messages = tuple((turn["role"], turn["content"]) for turn in chat_history)
        rendered = self.answering.render(messages, add_generation_prompt)
        return ChatPrompt.of(rendered, chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the answering model; every model's is set."""
        for engine in self.engines.values():
            if engine is not None and engine.lm is not None:
                engine.lm.chat_template(chat_template)
        template: str | None = self._answering.chat_template(chat_template)
        return template

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizers, for the harness's request cache."""
        engines = [engine for engine in self.engines.values() if engine is not None]
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

    def totals(self) -> dict[str, Any]:
        """What the run did: the ledger's totals, and what the engines computed in all its processes."""
        found = run_report.totals(self.records, (self._computed_here(), *self._computed_elsewhere), self._seconds)
        written = {} if self.settings.ledger is None else {"ledger": checksums(ledger_file.lines_of(self.records))}
        return found | written

    def _described(self) -> dict[str, Any]:
        """The description, with the data that it answered."""
        return {**self.description, **run_report.data_files(self.records)}

    def _computed_here(self) -> dict[str, Any]:
        return run_report.computed(self.engines, self.called, self.store)

    def get_model_info(self) -> dict[str, Any]:
        """Goes into `config` of the harness's results file."""
        self._write_ledger()
        return {"tandem": {**self._described(), "totals": self.totals()}}

    def close(self) -> None:
        """End the engines' threads and close the store."""
        for engine in self.engines.values():
            if engine is not None:
                engine.close()
        self._loop.close()
        if self.store is not None:
            self.store.close()
