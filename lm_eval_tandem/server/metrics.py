"""`GET /metrics`: requests, answers by stage, tokens by model, dollars, latencies and the queue, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.harness.run_report import work_by_model
from lm_eval_tandem.server.replies import record_tokens
from lm_eval_tandem.server.request_log import CLIENT_GONE, Entry
from lm_eval_tandem.server.service import Service

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
"""Upper ends of the buckets of latencies."""


class Metrics:
    """Counts requests and answers from the start of the server.

    Parameters
    ----------
    service
        Whose queue and engines are shown.
    """

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("tandem_requests", "Requests by route and status", "route", "status")
        self._gone = self._counter("tandem_clients_gone", "Requests whose client hung up")
        self._answers = self._counter("tandem_answers", "Answers by policy and stage", "policy", "stage")
        self._fallbacks = self._counter("tandem_fallbacks", "Answers of the intern alone for want of a mentor")
        self._tokens = self._counter("tandem_tokens", "Tokens of complete answers by model", "model", "kind")
        self._dollars = self._counter("tandem_dollars", "Dollars of complete answers, where prices are known")
        self._tflops = self._counter("tandem_tflops", "TFLOPs (Eq. 12) of complete answers, where sizes are known")
        self._seconds = self._histogram("tandem_request_seconds", "Seconds to the end of a request", "route")
        self._first = self._histogram("tandem_first_text_seconds", "Seconds to the first piece of a stream")
        ProcessCollector(registry=self.registry)
        self.registry.register(ServiceCollector(service))

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, registry=self.registry, buckets=SECONDS)

    def count(self, entry: Entry) -> None:
        """Count a request that has ended."""
        self._requests.labels(entry.route, str(entry.status)).inc()
        self._seconds.labels(entry.route).observe(entry.seconds)
        if entry.status == CLIENT_GONE:
            self._gone.inc()
        if entry.first_text is not None:
            self._first.observe(entry.first_text)
        for answered in entry.answered:
            if answered.is_fallback:
                self._fallbacks.inc()
            record = answered.record
            if record is None:
                continue
            self._answers.labels(answered.policy, str(record.stage)).inc()
            self._dollars.inc(record.dollars or 0)
            self._tflops.inc(record.tflops or 0)
            for model, kinds in record_tokens(record).items():
                for kind, tokens in kinds.items():
                    self._tokens.labels(model, kind).inc(max(0, tokens))

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)


class ServiceCollector(Collector):
    """The figures that the service and its engines keep themselves."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The figures now."""
        service, lm = self._service, self._service.lm
        batch = max(engine.max_concurrency for engine in lm.engines.values() if engine is not None)
        under_way = service.under_way
        yield GaugeMetricFamily("tandem_answers_under_way", "Answers that are being made", under_way)
        waiting = max(0, under_way - batch)
        yield GaugeMetricFamily("tandem_queue", "Answers under way beyond what fits into one batch", waiting)
        most = service.limits.max_requests
        yield GaugeMetricFamily("tandem_max_answers_under_way", "Beyond these, requests get status 429", most)
        computed = CounterMetricFamily(
            "tandem_computed_tokens", "Tokens that the models really read and generated", labels=["model", "kind"]
        )
        for name, work in work_by_model(lm.engines, lm.called).items():
            computed.add_metric([name, "read"], work.prefill_tokens)
            computed.add_metric([name, "generated"], work.decode_tokens)
        yield computed
        hits = sum(engine.hits for engine in lm.called if isinstance(engine, CachedEngine))
        yield CounterMetricFamily("tandem_store_hits", "Calls that the store answered", hits)
