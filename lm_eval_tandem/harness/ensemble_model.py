"""The model `ensemble` of lm-evaluation-harness: several models that answer together (`answering.py`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lm_eval_tandem import ledger_file
from lm_eval_tandem.cascade.prompts import prompt_of
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine, registry
from lm_eval_tandem.engines.rating import Scorer
from lm_eval_tandem.ensembles import scorers, selection
from lm_eval_tandem.ensembles.ensemble import Aggregation, Ensemble, Selector
from lm_eval_tandem.ensembles.reference_file import other_rendering
from lm_eval_tandem.ensembles.responses import BestOf, One, Vote, extractor
from lm_eval_tandem.ensembles.run import Member
from lm_eval_tandem.ensembles.segments import BELOW, Segments
from lm_eval_tandem.ensembles.tokens import Tokens
from lm_eval_tandem.errors import ContextError
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.harness import arguments as model_arguments
from lm_eval_tandem.harness import ensemble_arguments, run_report
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.ensemble_settings import EnsembleSettings, read_ensemble
from lm_eval_tandem.harness.windows import prompt_too_long, too_little_room
from lm_eval_tandem.ledger import Record

log = logging.getLogger(__name__)


class EnsembleLM(AnsweringLM):
    """`--model ensemble`: models are selected for each question, and what they write becomes one answer.

    Everything that the harness asks of one model besides answers (likelihoods, chat templates, tokenizer) goes to the
    model that `loglikelihood` names. The arguments are described in `harness/ensemble_arguments.py`, the strategies in
    `ensembles/strategies.py`.

    Raises
    ------
    TandemError
        In one sentence, before a model is loaded where that is possible.
    """

    registered_name = "ensemble"
    settings: EnsembleSettings

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._begin()
        self.settings = self._read(arguments)
        chosen = self.settings
        if chosen.ledger is not None:
            labels = {name: role.label for name, role in chosen.roles.items()}
            ledger_file.check_replaceable(chosen.ledger, chosen.policy, chosen.pair_name, labels)
        registry.check(chosen.roles)
        self.scorer: Scorer | None = None
        with self.ranks.failing_together(), ExitStack() as opened:  # closed again where a later step fails
            self._open_store(opened)
            self._engines = {name: self._load_engine(role, opened) for name, role in chosen.roles.items()}
            self._members = tuple(
                Member(name, self._with_store(engine), chosen.roles[name].label, chosen.roles[name].prices)
                for name, engine in self._engines.items()
            )
            if "scorer" in chosen.options:
                asked = {member.name: member.engine for member in self._members}
                self.scorer = scorers.parse(chosen.options["scorer"], asked, chosen.scorer_options)
                opened.callback(self.scorer.close)
            self._joint = self._load_joint(opened)
            opened.pop_all()
        self._called = [member.engine for member in self._members]
        if self._joint is not None:
            self._called = [self._with_store(self._joint)]
        count = chosen.options.get("count")
        selector = Selector(chosen.selection.name, count, chosen.reference)  # type: ignore[arg-type]
        self.ensemble = Ensemble(self._members, selector, self._aggregation(), chosen.policy, self._joint)
        self._loop = EventLoopThread()

    def _read(self, arguments: Mapping[str, Any]) -> EnsembleSettings:
        """The settings; a subclass may refuse some of them here, before a model is loaded."""
        return read_ensemble(arguments, registry.arguments)

    def _load_joint(self, opened: ExitStack) -> Any:
        """The engine of all models, where they decode in step; None elsewhere."""
        chosen = self.settings
        if chosen.aggregation.level != "token":
            return None
        from lm_eval_tandem.engines.hf.joint import JointEngine

        members: list[Any] = list(self._engines.values())  # of backend=hf, which the settings have checked
        joint = JointEngine(
            members,
            union=chosen.aggregation.name == "gac",
            weights=chosen.options.get("weights"),
            threshold=chosen.options.get("threshold"),
        )
        opened.callback(joint.close)
        return joint

    def _aggregation(self) -> Aggregation:
        """What makes one answer of what the models write."""
        chosen, options = self.settings, self.settings.options
        name = chosen.aggregation.name
        if self._joint is not None:
            return Tokens(self._called[0], self._joint)
        if name == "one":
            return One()
        if name == "vote":
            return Vote(extractor(chosen.extract))
        scorer = str(options.get("scorer", ""))
        reader = next((member for member in self._members if scorer == scorers.LOGPROB + member.name), None)
        if name == "best_of":
            assert self.scorer is not None
            return BestOf(self.scorer, reader)
        return Segments(
            name,  # type: ignore[arg-type]
            options.get("segment_tokens", chosen.aggregation.tokens),
            options.get("segment_end", ""),
            chosen.max_rounds,
            self.scorer,
            reader,
            options.get("score_threshold"),
        )

    @property
    def engines(self) -> dict[str, Engine]:
        """The engine of each model by its name."""
        return self._engines

    @property
    def answerer(self) -> Ensemble:
        """The ensemble."""
        return self.ensemble

    @property
    def called(self) -> Sequence[Engine]:
        """The engines that the ensemble calls."""
        return self._called

    @property
    def answering(self) -> Engine:
        """The engine of the model that `loglikelihood` names."""
        return self._engines[self.settings.loglikelihood]

    def check_fits(self, task: Task) -> int:
        """The size of a question's prompt in tokens of the first model, if it fits into every model's window.

        Raises
        ------
        ContextError
            The prompt with the longest answer does not fit.
        """
        self.compare_rendering(task)
        sizes, assessed = [], self.settings.selection.name == "self_assessment"
        for name, engine in self._engines.items():
            sizes.append(len(engine.encode(prompt_of(engine, task.question))))
            if assessed and len(engine.encode(selection.assessment_prompt(engine, task.question))) >= engine.window:
                raise ContextError(
                    f"{task.called} and the question whether {name} can solve it do not fit "
                    f"into its window, {engine.window} tokens; use a model with a longer window, or another selection."
                )
            if sizes[-1] >= engine.window:
                raise prompt_too_long(task.called, name, engine.window, sizes[-1])
            if sizes[-1] + task.sampling.max_tokens > engine.window:
                longest = self.longest_answer(task)
                advice = [f"lower max_gen_toks (--gen_kwargs) to at most {longest}"] * (longest > 0)
                needed = [f"max_gen_toks={task.sampling.max_tokens} for the answer"]
                raise too_little_room(
                    task.called, name, engine.window, sizes[-1], needed, advice or ["shorten the prompt"]
                )
        return sizes[0]

    def _other_rendering(self, task: Task) -> str:
        """See `AnsweringLM._other_rendering`: otherwise than the questions of the reference."""
        sentence = other_rendering(self.settings.reference or {}, self._engines, task.question)
        return sentence and f"reference={self.settings.options['reference']}: {sentence}"

    def warnings(self, records: Sequence[Record]) -> dict[str, str]:
        """See `AnsweringLM.warnings`: empty answers, and models that say nothing of themselves."""
        found = {}
        empty = sum(record.reason == BELOW and not record.segments for record in records)
        if empty:
            found["empty"] = (
                f"{empty} of {len(records)} answers are empty, because no first segment reached "
                f"score_threshold={self.settings.options['score_threshold']:g}; lower it."
            )
        if unsaid := self.ensemble.selector.replies.warning:
            found["unsaid"] = unsaid
        return found

    def longest_answer(self, task: Task) -> int:
        """The largest `max_tokens` with which a question fits into every window; below 1 where none is small enough."""
        engines = self._engines.values()
        return min(engine.window - len(engine.encode(prompt_of(engine, task.question))) for engine in engines)

    @property
    def description(self) -> dict[str, Any]:
        """What ran: models, strategies, versions."""
        return run_report.ensemble_description(self.settings, self._engines, self.scorer)

    def close(self) -> None:
        """End the engines' threads, and close scorer and store."""
        if self._joint is not None:
            self._joint.close()
        if self.scorer is not None:
            self.scorer.close()
        super().close()


EnsembleLM.__doc__ = f"{EnsembleLM.__doc__}\n{model_arguments.docstring(ensemble_arguments.ARGUMENTS)}\n"
EnsembleLM.__signature__ = model_arguments.signature(  # type: ignore[attr-defined]
    table=ensemble_arguments.ARGUMENTS
)
