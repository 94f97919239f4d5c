"""The base of this project's tasks: one class that releases 0.4 and 0.5 of lm-eval both understand.

The task files in `task_configs` name it, or a class derived from it, as their `class`. Their metrics are computed by a
function that the file names as `process_results`, never by the metric functions of the harness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.api import task as harness_task

from lm_eval_tandem import errors

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask as HarnessTask
else:
    HarnessTask = getattr(harness_task, "GenerateTask", harness_task.ConfigurableTask)


class ResponseTask(HarnessTask):
    """A task of lm-eval that generates responses and whose file has a function `process_results(doc, responses)`.

    Parameters
    ----------
    config
        The task file's fields.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        errors.print_plainly()
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.UNSAFE_CODE = bool(self.config.unsafe_code)  # release 0.5 asks for it and does not set it
        self._computed: set[str] = set()

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> Any:
        """Return the metrics of a document from its responses, as the filter left them.

        Release 0.5 passes a flat list of responses. Release 0.4 passes a list of one entry: the first response, or what
        the task's own filter made of all of them, a list.
        """
        flat = results[0] if results and isinstance(results[0], list) else results
        compute: Any = self.config.process_results
        if not callable(compute):  # release 0.4 with --predict_only
            return super().process_results(doc, results)
        metrics = compute(doc, flat)
        self._computed |= set(metrics)
        return metrics

    def dump_config(self) -> dict[str, Any]:
        """Return the configuration for the results, with the metrics that there were among those of the file.

        Costs are metrics of a tandem alone, and dollars need prices. The harness's logger for Weights & Biases looks
        up every metric of the list in every sample, and logs nothing more where one is missing.
        """
        config: dict[str, Any] = super().dump_config()
        listed = config.get("metric_list")
        if not self._computed or not isinstance(listed, list):
            return config
        return {**config, "metric_list": [entry for entry in listed if entry["metric"] in self._computed]}

    def _build_scorers(self) -> list[Any]:
        """Build the scorers of release 0.5, whose metrics have the names of the file and no function.

        By its name alone, release 0.5 would take `acc` for its own metric, which scores no generated response.
        """
        from lm_eval.api.metrics import Metric, mean  # type: ignore[attr-defined]  # of release 0.5
        from lm_eval.scorers import build_scorer

        pipelines: Any = self.config.filter_list

        def column(entry: dict[str, Any]) -> Metric:
            return Metric(
                entry["metric"],
                _computed_elsewhere,
                aggregation=mean,
                higher_is_better=entry["higher_is_better"],
                output_type={"generate_until"},
            )

        return [
            build_scorer(
                cfg={**pipeline, "metric_list": [column(entry) for entry in pipeline["metric_list"]]},
                output_type="generate_until",
            )
            for pipeline in pipelines
        ]


def _computed_elsewhere(*_: Any, **__: Any) -> float:
    raise NotImplementedError("process_results computes the metrics of this task")
