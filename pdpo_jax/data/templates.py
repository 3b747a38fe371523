"""Chat templates: what a tokenizer's template makes of a dialogue."""

import atexit
import contextlib
import dataclasses
import functools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import template_worker

# Stand for a question and an answer in probes. Digits stay what they are in a
# template that trims, escapes or changes case.
_QUESTION = "40918273650192837465"
ANSWER = "81736450921837465029"
# Dialogues of one request to the worker, and their characters.
_DIALOGUES = 256
_CHARACTERS = 1_000_000
# For a request to the worker, which takes some milliseconds: seconds of
# computing, and bytes.
_SECONDS = 5
_MEMORY = 2**30
# Seconds until a worker that does not answer is killed, for what its own limit
# cannot interrupt.
_PATIENCE = 60

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Refused:
  """A dialogue that the template does not render."""

  reason: str


class _Worker:
  """The process that renders, started when it is first needed."""

  def __init__(self, seconds: int = _SECONDS, patience: float = _PATIENCE):
    self._seconds = seconds
    self._patience = patience
    self._process: subprocess.Popen | None = None
    self._lock = threading.Lock()

  def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """The worker's reply; a `limit` where it has none."""
    line = json.dumps(request).encode() + b"\n"
    with self._lock:
      if self._process is None or self._process.poll() is not None:
        self._start()
      late = threading.Timer(self._patience, self._process.kill)
      late.daemon = True
      late.start()
      reply = b""
      try:
        with contextlib.suppress(BrokenPipeError):
          self._process.stdin.write(line)
          self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply.endswith(b"\n"):
          status = self._process.wait()
          return {"limit": f"its process bears, which ended with {status}"}
      finally:
        late.cancel()
        if not reply.endswith(b"\n"):
          self.close()
    return json.loads(reply)

  def _start(self) -> None:
    self.close()
    script = template_worker.__file__
    self._process = subprocess.Popen(
      # -P: `tokenize.py` beside the script must not hide Python's.
      [sys.executable, "-P", script, str(self._seconds), str(_MEMORY)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      # Ctrl-C is for whoever asks; the worker ends when its input does.
      start_new_session=True,
    )

  def close(self) -> None:
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
      self._process.stdout.close()
      self._process = None


_worker = _Worker()
atexit.register(_worker.close)


class ChatTemplate:
  """A tokenizer's chat template, or another in its place.

  Args:
    tokenizer: its special tokens are the template's variables.
    source: of another one; "" for the tokenizer's own.

  Attributes:
    name: of the base, for messages.
    source: in Jinja's language.
    opening: what is written before a first question.
    after: what is written after the last answer.
    takes_system: whether a system message may come first. Some templates
      refuse it, or leave it out.

  Raises:
    ValueError: if the template is broken, exceeds its limits or refuses the
      simplest dialogues.
  """

  def __init__(
    self, tokenizer: transformers.PreTrainedTokenizerBase, source: str = ""
  ):
    self.name = tokenizer.name_or_path or "this tokenizer"
    self.source = source or tokenizer.get_chat_template()
    self._variables = {
      **json.loads(json.dumps(tokenizer.special_tokens_map, default=str)),
      "tools": None,
      "documents": None,
      "date_string": template_worker.DATE.strftime("%d %b %Y"),
    }
    question = structs.Message("user", _QUESTION)
    instruction = structs.Message("system", _QUESTION[::-1])
    answer = structs.Message("assistant", ANSWER)
    bare, whole = self.render(
      [(question, answer), (instruction, question, answer)]
    )
    self.takes_system = isinstance(whole, str) and instruction.content in whole
    turns = (question,)
    # Only a strict one wants a system message.
    if isinstance(bare, Refused) and self.takes_system:
      bare, turns = whole, (instruction, question)
    if isinstance(bare, Refused):
      raise ValueError(
        f"the chat template of {self.name} refuses a question with its answer "
        f"({bare.reason}); mend it, or use data.template 'plain'"
      )
    before, answered, self.after = bare.rpartition(ANSWER)
    if not answered:
      raise ValueError(
        f"the chat template of {self.name} leaves the text of an answer out; "
        "mend it, or use data.template 'plain'"
      )
    self.opening = before.partition(_QUESTION)[0]
    (asked,) = self.render([turns], add_generation_prompt=True)
    if isinstance(asked, str) and asked.rstrip() != before.rstrip():
      _warn(self.name, asked[-60:], before[-60:])

  def render(
    self,
    dialogues: Sequence[Sequence[structs.Message]],
    add_generation_prompt: bool = False,
  ) -> list[str | Refused]:
    """The text of each dialogue.

    Raises:
      ValueError: if the template is broken, or exceeds its limits.
    """
    variables = self._variables | {
      "add_generation_prompt": add_generation_prompt
    }
    rendered = []
    for batch in _batches(dialogues):
      reply = _worker.ask(
        {
          "template": self.source,
          "variables": variables,
          "dialogues": [
            [{"role": turn.role, "content": turn.content} for turn in turns]
            for turns in batch
          ],
        }
      )
      if "broken" in reply:
        raise ValueError(
          f"the chat template of {self.name} is broken ({reply['broken']}); "
          "mend it, or use data.template 'plain'"
        )
      if "limit" in reply:
        raise ValueError(
          f"the chat template of {self.name} takes more than "
          f"{reply['limit']}; mend it, or use data.template 'plain'"
        )
      for outcome in reply["rendered"]:
        text = outcome.get("text")
        rendered.append(Refused(outcome["error"]) if text is None else text)
    return rendered


def _batches(dialogues) -> Iterator[list[Sequence[structs.Message]]]:
  batch, size = [], 0
  for turns in dialogues:
    batch.append(turns)
    size += sum(len(turn.content) for turn in turns)
    if len(batch) == _DIALOGUES or size > _CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


@functools.cache
def _warn(name: str, asked: str, before: str) -> None:
  """Says once that answers are not asked for as they are rendered."""
  logger.warning(
    "the chat template of %s ends the prompt of a generation with %r, and "
    "writes %r before an answer that was given; prompts are the latter, in "
    "training and generation",
    name,
    asked,
    before,
  )
