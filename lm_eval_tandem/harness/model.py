"""The model `tandem` of lm-evaluation-harness: the cascade behind the harness's own interface."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from tqdm import tqdm

from lm_eval_tandem import __version__, errors, ledger
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import DEFAULT_VIEW, Engine, ScoringView, registry
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.errors import (
    ArgumentError,
    CallError,
    ClassifierError,
    ContextError,
    EngineError,
    UnreachableError,
)
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.harness import arguments as model_arguments
from lm_eval_tandem.harness import requests as harness_requests
from lm_eval_tandem.harness.distributed import Ranks
from lm_eval_tandem.harness.requests import Answer, ChatPrompt
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.store import Store

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4
"""Questions under way at once, in batches: enough that both engines always find a full one waiting."""


VERSIONS = ("engine", "torch", "transformers", "vllm", "openai", "lm_eval", "resume", "entropy", "dtype", "device")
"""What is said of an engine in results, as far as it has it."""


class TandemLM(LM):
    """`--model tandem`: the mentor writes insights, a judge says when they suffice, the intern answers.

    Parameters
    ----------
    mentor, intern
        Folder or hub id of a causal language model; neither for the bundled pair.
    backend, mentor_backend, intern_backend
        "hf" (transformers), "vllm", "openai" (a server of its protocol), or the name of any other registered model of
        lm_eval, as mentor_backend.
    policy
        "cascade", "intern", "mentor", "stage:N", "budget_forcing:N", "llm_cascade" or "escalate".
    classifier
        Name or folder of a sufficiency classifier (`policy=cascade` needs one for a pair of your own).
    thresholds
        One per stage, the question alone first, as "0.5:0.5:0.6:0.7"; replaces the classifier's own.
    efforts
        Mentor tokens in total after each stage, as "100:500:1000".
    insights
        "cutoff" (one text, cut at the efforts) or "staged" (each stage a deeper pass).
    guidance
        "guided" (insights in the intern's prompt) or "continuation" (the intern goes on in the text).
    prompts
        "gpra", or a JSON file with request, open, close, deepen.
    thinking
        "auto", "none", "mentor", "intern" or "both": `enable_thinking` of the roles' chat templates.
    loglikelihood
        The role that answers loglikelihood requests.
    store
        SQLite file of finished generations; a killed run goes on from there, policies share the mentor's text.
    ledger
        JSON-lines file with one record per question.
    seed
        For sampling; greedy generation needs none.
    record_features
        Keep the judge's features in the ledger, at fixed stages too. batch_size, max_batch_size, device, and every
        argument of `--model hf`: for both roles, or with the prefix mentor_ or intern_ for one.

    Raises
    ------
    TandemError
        Before a model is loaded where that is possible, in one sentence.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        errors.print_plainly()
        self.settings = model_arguments.read(arguments, registry.arguments)
        chosen = self.settings
        self.ranks = Ranks()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world_size
        self.judge = self._load_judge() if chosen.policy.needs_judge else None
        view = DEFAULT_VIEW if self.judge is None else self.judge.view
        if self.judge is not None and chosen.intern is not None:
            registry.check_view(view, chosen.intern.backend, f"classifier={chosen.classifier}")
        self.store = Store(chosen.store) if chosen.store is not None else None
        self._mentor = None if chosen.mentor is None else registry.load(chosen.mentor)
        self._intern = None if chosen.intern is None else registry.load(chosen.intern)
        refused = str(getattr(self._intern, "cannot_score", ""))
        if refused and (self.judge is not None or chosen.record_features):
            raise EngineError(refused)
        if self.judge is not None and self._intern is not None:
            who = f"classifier={chosen.classifier}"
            registry.prepare(self._intern, view, self.judge.width, self.judge.adapter, who)
        self.cascade = Cascade(
            mentor=self._wrapped(self._mentor),
            intern=self._wrapped(self._intern),
            prompts=chosen.prompts,
            policy=chosen.policy,
            efforts=chosen.efforts,
            judge=self.judge,
            record_features=chosen.record_features,
            prices={name: role.prices for name, role in chosen.roles.items() if role and role.prices},
            view=view,
        )
        self.records: list[Record] = []
        """Of this process; at rank 0, after each call of `generate_until`, those of all."""
        self._elsewhere: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._loop = EventLoopThread()

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> TandemLM:
        """As the harness calls it; the run's name goes into its dictionary, from where result folders take theirs."""
        lm = cls(**arg_dict, **{k: v for k, v in (additional_config or {}).items() if v is not None})
        arg_dict.setdefault("model", lm.settings.run_name)
        return lm

    def use(self, policy: str) -> None:
        """Go on with another policy and the same engines; the records start anew. For policies that need no judge."""
        chosen = Policy.parse(policy, len(self.settings.efforts))
        self.settings = replace(self.settings, policy=chosen)
        self.cascade = replace(self.cascade, policy=chosen)
        self.records = []

    def record_hidden(self) -> None:
        """From now on what record_features keeps includes the intern's hidden states.

        Raises
        ------
        ClassifierError
            The intern's engine does not tell them.
        """
        assert self._intern is not None
        view = ScoringView(hidden=True)
        registry.prepare(self._intern, view, None, None, "collect --hidden")
        self.cascade = replace(self.cascade, view=view)

    def _load_judge(self) -> Sufficiency:
        from lm_eval_tandem.judge import artefact  # brings scikit-learn, which only a judge needs

        chosen = self.settings
        if chosen.classifier is None:
            raise ClassifierError(
                f"policy={chosen.policy} needs a sufficiency classifier, and none is known for the pair "
                f"{chosen.pair_name}; fit one with `lm-eval-tandem collect` and `lm-eval-tandem fit` and give its "
                "folder as classifier=…, or use policy=stage:N, which needs none."
            )
        if chosen.thresholds is None:
            judge = artefact.load(chosen.classifier, stages=len(chosen.efforts) + 1)
        else:
            judge = replace(artefact.load(chosen.classifier), thresholds=chosen.thresholds)
        assert chosen.mentor is not None
        assert chosen.intern is not None
        fitted = judge.pair.get("mentor"), judge.pair.get("intern")
        ours = chosen.mentor.label, chosen.intern.label
        if fitted != ours:
            log.warning("classifier=%s was fitted on the pair %s, not on %s.", chosen.classifier, fitted, ours)
        return judge

    def _wrapped(self, engine: Engine | None) -> Engine | None:
        return engine if engine is None or self.store is None else CachedEngine(engine, self.store)

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One answer per request, in order. Raises ContextError before anything runs if a prompt cannot fit."""
        began = time.perf_counter()
        tasks = harness_requests.tasks_of(requests, self._answering.max_gen_toks, self.settings.seed)
        failed: list[CallError] = []
        sizes = [self._check_fits(task) for task in tasks]
        order = sorted(range(len(tasks)), key=lambda i: (-sizes[i], tasks[i].question.text))
        bar = tqdm(total=len(tasks), disable=disable_tqdm or self.rank != 0, desc=f"Running {self.settings.run_name}")
        answers: list[Answer | None] = [None] * len(tasks)

        async def one(i: int, places: asyncio.Semaphore) -> None:
            async with places:
                try:
                    text, record = await self.cascade.answer(tasks[i])
                except CallError as error:  # its own alone: the others go on
                    failed.append(error)
                    return
            self.records.append(record)
            answers[i] = Answer.of(text, record.metrics)
            bar.update(1)

        async def everything() -> None:
            places = asyncio.Semaphore(self._max_concurrency)
            running = [asyncio.ensure_future(one(i, places)) for i in order]
            try:
                await asyncio.gather(*running)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

        try:
            self._loop.run(everything())
        except UnreachableError as error:
            raise UnreachableError(f"{error} {self._kept(answers)}") from error
        finally:
            bar.close()
            self._seconds += time.perf_counter() - began
            self._write_ledger()
        if failed:
            raise EngineError(f"{len(failed):,} of {len(tasks):,} questions failed: {failed[0]}; {self._kept(answers)}")
        if self.world_size > 1:
            self._bring_together()
        return [answer for answer in answers if answer is not None]

    def _kept(self, answers: list[Answer | None]) -> str:
        """What is left to do after questions failed."""
        if self.store is None:
            return "give store=FILE in --model_args, and another run will ask only those."
        kept = len(answers) - answers.count(None)
        return f"the other {kept:,} are in store={self.store.path}: run again with it to ask only the rest."

    def _bring_together(self) -> None:
        """At rank 0: the records and the work of all processes."""
        everyone = self.ranks.gather_object((self.records, self._computed_here(), self._seconds))
        if everyone is not None:
            self.records = [record for records, _, _ in everyone for record in records]
            self._elsewhere = [computed for _, computed, _ in everyone[1:]]
            self._seconds = max(seconds for _, _, seconds in everyone)
            self._write_ledger()

    @property
    def _max_concurrency(self) -> int:
        return BATCHES_IN_FLIGHT * max(
            engine.max_concurrency for engine in (self._mentor, self._intern) if engine is not None
        )

    def _check_fits(self, task: Task) -> int:
        """Tokens of the question; the whole prompt with the longest insights and the answer has to fit."""
        chosen, size = self.settings, 0
        policy, prompts = chosen.policy, chosen.prompts
        longest = chosen.efforts[-1 if policy.stage is None else policy.stage - 1]
        where = f"{task.task or 'request'} #{task.doc_id}"
        checks = []
        if self._mentor is not None and policy.mentor_may_answer:
            checks.append((self._mentor, prompts.alone(self._mentor, task.question), 0, task.sampling.max_tokens))
        if self._mentor is not None and not policy.mentor_alone:
            checks.append((self._mentor, prompts.mentor(self._mentor, task.question), longest, 0))
        if self._intern is not None and not policy.needs_mentor:
            checks.append((self._intern, prompts.alone(self._intern, task.question), 0, task.sampling.max_tokens))
        elif self._intern is not None:
            text = prompts.intern(self._intern, task.question, " ")
            checks.append((self._intern, text, longest, task.sampling.max_tokens))
        for engine, text, insights, answer in checks:
            size = len(engine.encode(text))
            if size + insights + answer > engine.window:
                parts = f"{size} tokens, up to {insights} of insights and max_gen_toks={answer} for the answer"
                raise ContextError(
                    f"{where} does not fit into the window of {engine.name}, {engine.window} tokens: the prompt has "
                    f"{parts}; lower max_gen_toks (--gen_kwargs) or the efforts, or use a model with a longer window."
                )
        return size

    def _write_ledger(self) -> None:
        path = self.settings.ledger
        if path is None or self.rank != 0:
            return
        try:
            ledger.write(path, self.records, self.description)
        except OSError as error:  # the answers are worth more than the book about them
            log.error("ledger=%s could not be written (%s); the run goes on without it.", path, error)

    # Everything the harness asks one model for goes to the model that answers

    @property
    def _answering(self) -> Any:
        engine = self._mentor if self.settings.loglikelihood == "mentor" else self._intern
        assert engine is not None
        return engine.lm

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuses `--use_cache`: its keys hold the prompt alone, so another policy or threshold would get old answers.

        Raises
        ------
        ArgumentError
            Always, where a cache is asked for.
        """
        if cache_hook.dbdict is not None:
            raise ArgumentError(
                "--use_cache tells prompts apart but not policies, models or thresholds, and would give old answers; "
                "leave it out and give store=FILE in --model_args, which knows all of these."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Answered by one role alone (`loglikelihood=`); nothing is cascaded."""
        found: list[tuple[float, bool]] = self._answering.loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Answered by one role alone (`loglikelihood=`); nothing is cascaded."""
        found: list[float] = self._answering.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatPrompt:
        """The conversation, for each role to render later; its text is the answering model's rendering."""
        rendered = self._answering.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        return ChatPrompt.of(rendered, chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the answering model; every role's is set."""
        for engine in (self._mentor, self._intern):
            if engine is not None and engine.lm is not None:
                engine.lm.chat_template(chat_template)
        found: str | None = self._answering.chat_template(chat_template)
        return found

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
    def description(self) -> dict[str, Any]:
        """What ran: pair, policy, efforts, thresholds, classifier, parameters, versions."""
        chosen = self.settings
        roles = {"mentor": (chosen.mentor, self._mentor), "intern": (chosen.intern, self._intern)}
        described: dict[str, Any] = {
            "run": chosen.run_name,
            "version": __version__,
            "pair": chosen.pair_name,
            "policy": str(chosen.policy),
            "efforts": list(chosen.efforts),
            "insights": chosen.prompts.insights,
            "guidance": chosen.prompts.guidance,
            "seed": chosen.seed,
            "loglikelihood": chosen.loglikelihood,
        }
        if self.judge is not None:
            described["classifier"] = self.judge.name
            described["recipe"] = self.judge.recipe
            described["thresholds"] = list(self.judge.thresholds)
            config = {**self.judge.config, **self.judge.config["fitted_on"]}
            told = ("schema", "sha256", "model", "tasks", "labels", "per")
            described["judge"] = {name: config[name] for name in told if name in config}
        for name, (role, engine) in roles.items():
            if role is not None and engine is not None:
                described[name] = {
                    "model": role.label,
                    "parameters": engine.parameters,
                    "window": engine.window,
                    **{key: engine.identity[key] for key in VERSIONS if key in engine.identity},
                    **({"prices": asdict(role.prices)} if role.prices is not None else {}),
                }
        return described

    def totals(self) -> dict[str, Any]:
        """What the run did: the ledger's totals, and what the engines themselves computed in its processes."""
        found = ledger.totals(self.records)
        for computed in (self._computed_here(), *self._elsewhere):
            found = added(found, computed)
        found["wall_seconds"] = self._seconds
        return found | shares(found)

    def _computed_here(self) -> dict[str, Any]:
        """What this process computed, and what it found in the store."""
        engines = {"mentor": self._mentor, "intern": self._intern}
        computed: dict[str, Any] = {
            "computed": {role: asdict(engine.work) for role, engine in engines.items() if engine is not None}
        }
        if self.store is not None:
            wrapped = (self.cascade.mentor, self.cascade.intern)
            computed["found_in_store"] = sum(engine.found for engine in wrapped if isinstance(engine, CachedEngine))
            computed["refused_in_store"] = self.store.refused
            computed["unkept_in_store"] = self.store.unkept
        return computed

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


def shares(totals: dict[str, Any]) -> dict[str, float]:
    """Time spent judging, in that spent generating.

    judge_share: passes and measures, classifier, and beginnings that were refused. refused_share: the last of these
    alone; of the intern's generation they have the share that they have in its tokens.
    """
    work = totals["computed"]
    generating = sum(part["generate_seconds"] for part in work.values())
    judging, refused = sum(part["judge_seconds"] for part in work.values()), 0.0
    written = totals.get("tokens", {}).get("intern_new", 0)
    if written and "intern" in work:
        refused = totals["refused_tokens"] * totals["questions"] / written * work["intern"]["generate_seconds"]
    kept = generating - refused
    parts = {"judge_share": judging + refused, "refused_share": refused}
    return {name: part / kept if kept > 0 else 0.0 for name, part in parts.items()}


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Numbers of the same name added up, however deep; what only one has is kept."""
    total = dict(one)
    for name, value in other.items():
        if name not in total:
            total[name] = value
        else:
            total[name] = added(total[name], value) if isinstance(value, dict) else total[name] + value
    return total
