"""Counts and times of a server, in the form of Prometheus. No ids, no texts."""

from typing import Any

import prometheus_client
from prometheus_client import core

from pdpo_jax.inference import engine as engine_lib

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Meters:
  """What is counted.

  Attributes:
    registry: has all of it.
  """

  def __init__(self, engine: engine_lib.Answering):
    self.registry = prometheus_client.CollectorRegistry()
    shared: dict[str, Any] = {"registry": self.registry}
    self.requests = prometheus_client.Counter(
      "pdpo_requests", "Requests, by what was asked.", ["route", "status"],
      **shared,
    )  # fmt: skip
    self.seconds = prometheus_client.Histogram(
      "pdpo_request_seconds", "Until the end of an answer.", ["route"],
      buckets=_SECONDS, **shared,
    )  # fmt: skip
    self.first_token = prometheus_client.Histogram(
      "pdpo_first_token_seconds", "Until an answer's first text.",
      buckets=_SECONDS, **shared,
    )  # fmt: skip
    self.choices = prometheus_client.Counter(
      "pdpo_choices", "Choices that were kept.", **shared
    )
    self.learnt = prometheus_client.Counter(
      "pdpo_people_learnt", "Times that somebody was learnt.", **shared
    )
    self.failed = prometheus_client.Counter(
      "pdpo_people_not_learnt", "Times that somebody could not be.", **shared
    )
    self.learning = prometheus_client.Histogram(
      "pdpo_learning_seconds", "Until all who waited were learnt.",
      buckets=_SECONDS, **shared,
    )  # fmt: skip
    for name, what in (
      ("slots", "Answers that can be made at once."),
      ("running", "Answers that are being made."),
      ("waiting", "Requests that wait for a slot."),
    ):
      gauge = prometheus_client.Gauge(f"pdpo_engine_{name}", what, **shared)
      gauge.set_function(lambda name=name: getattr(engine.status(), name))
    self.registry.register(_Tokens(engine))

  def note_lesson(self, event: dict[str, Any]) -> None:
    """What `lessons` tells."""
    if "learnt" in event:
      self.learnt.inc(event["learnt"])
      self.learning.observe(event["seconds"])
    self.failed.inc(event.get("failed", 0))

  def text(self) -> bytes:
    return prometheus_client.generate_latest(self.registry)


class _Tokens:
  """The engine counts tokens itself."""

  def __init__(self, engine: engine_lib.Answering):
    self._engine = engine

  def collect(self):
    status = self._engine.status()
    for name in ("prompt_tokens", "new_tokens"):
      counter = core.CounterMetricFamily(
        f"pdpo_{name}", "Tokens, prefixes included."
      )
      counter.add_metric([], getattr(status, name))
      yield counter
