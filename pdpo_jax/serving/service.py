"""What a server has in its hands: a run, an engine, people, and who learns."""

import pathlib
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.inference import engine as engine_lib
from pdpo_jax.runs import learning
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import (
  answers,
  lessons,
  meters,
  presence,
  protocol,
  speakers,
)

# Names a person, in place of the field `user`; percent-encoded.
USER_HEADER = "pdpo-user"


class Service:
  """All that requests are answered with.

  Args:
    run: that was trained.
    speakers: of it.
    engine: of its policy.
    positions: of the engine.

  Attributes:
    model: what clients call it.
  """

  def __init__(
    self,
    run: run_lib.Run,
    database: str,
    people: speakers.Speakers,
    engine: engine_lib.Answering,
    positions: int,
    asked: Sequence[structs.Prompt] | None = None,
  ):
    self.run, self.database = run, database
    self.speakers, self.engine = people, engine
    self.model = run.workdir.resolve().name
    self.created = int((run.workdir / "config.json").stat().st_mtime)
    self.answerer = answers.Answerer(run, engine, positions)
    self.meters = meters.Meters(engine)
    self.presence = presence.Presence()
    self._ranked: list[tuple[float, Any]] = []
    self._lock = threading.Lock()
    self.lessons = lessons.Lessons(run, database, asked, self._hear)

  def close(self) -> None:
    self.lessons.close()

  def _hear(self, event: dict[str, Any]) -> None:
    self.meters.note_lesson(event)
    if "question" in event:
      with self._lock:
        ranked = [x for x in self._ranked if x[1] != event["question"]]
        ranked.append((event["information"], event["question"]))
        self._ranked = sorted(ranked, key=lambda x: -x[0])

  @property
  def questions(self) -> list[Any]:
    """What a newcomer may be asked, the most telling first."""
    with self._lock:
      return [question for _, question in self._ranked]

  def who(
    self, model: str, body: Any = None, header: str | None = None
  ) -> str | None:
    """The id of whoever asks: by model, header, `user` or `safety_identifier`.

    Raises:
      protocol.ApiError: if the model is another one, or the id cannot be one.
    """
    # The name of a folder may have a colon in it.
    of_model = model.removeprefix(f"{self.model}:")
    if model not in (self.model, f"{self.model}:{of_model}"):
      raise protocol.ApiError(
        404,
        f"there is no model {model[:100]!r}; this server has {self.model!r}, "
        f"or {self.model + ':ID'!r} for somebody in particular",
        "model",
        "model_not_found",
      )
    named = [("model", None if model == self.model else of_model)]
    named += [(USER_HEADER, header and urllib.parse.unquote(header))]
    for field in ("user", "safety_identifier"):
      named.append((field, getattr(body, field, None)))
    for field, value in named:
      if value is not None and value.strip():
        return clean(value, field)
    return None


def clean(user_id: str, field: str = "user") -> str:
  """An id as a run has it.

  Raises:
    protocol.ApiError: if it cannot be one.
  """
  try:
    return learning.check_id(user_id)
  except ValueError as error:
    raise protocol.ApiError(400, str(error), field) from error


def encoder_of(run: run_lib.Run) -> prompts_lib.PromptEncoder:
  """Of a run's prompts."""
  return prompts_lib.make_encoder(run.tokenizer, run.config.data)


def page_folder() -> pathlib.Path:
  return pathlib.Path(__file__).with_name("page")
