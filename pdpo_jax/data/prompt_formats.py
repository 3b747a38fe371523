"""What stands around texts: a chat template's marks, or nothing."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import dialogues, templates, text_tokens

REFUSED = "dialogues that the template refuses"
RESPONSE_REFUSED = "responses that the template refuses"
OTHERWISE = "responses that the template writes after another prompt"
REWRITTEN = "responses that the template rewrites"

Ids = text_tokens.Ids
Counts = collections.Counter[str]
# The user's text, and what is asked.
Asked = tuple[str, structs.Prompt]


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
  """A prompt as token ids, or why there are none.

  Attributes:
    ids: None where there is a problem.
    text: what the ids are of, BOS aside.
    turns: of which the template made it; none in a plain text.
    problem: the reason under which it is counted.
    detail: what the template said.
  """

  ids: Ids | None
  text: str = ""
  turns: tuple[structs.Message, ...] = ()
  problem: str = ""
  detail: str = ""


# A prompt and a response to it, or what follows it; None for nothing.
Pair = tuple[EncodedPrompt, str | None]


class Plain:
  """The texts alone.

  Args:
    tokens: of texts.
    front: ids before a prompt.

  Attributes:
    takes_system: whether a system message may come first.
    space: before a response to a dialogue.
  """

  takes_system = True
  space = " "

  def __init__(self, tokens: text_tokens.TextTokens, front: Ids):
    self._tokens, self._front = tokens, front

  def encode(self, asked: Sequence[Asked]) -> Iterator[EncodedPrompt]:
    """Each prompt behind its user's text, however long."""
    texts = [
      "\n\n".join(filter(None, [text, dialogues.as_text(prompt)]))
      for text, prompt in asked
    ]
    for (_, prompt), text, ids in zip(
      asked, texts, self._tokens.prompts(texts), strict=True
    ):
      turns = () if isinstance(prompt, str) else prompt
      yield EncodedPrompt(np.concatenate([self._front, ids]), text, turns)

  def follow(self, pairs: Iterable[Pair], counts: Counts) -> Iterable[Pair]:
    """What follows each prompt, for each response: the response."""
    return pairs


class Chat:
  """Dialogues as a chat template writes them.

  Args:
    tokens: of texts.
    front: ids before a prompt.
    template: that writes.
    ends_itself: whether it ends a turn with a control token.

  Attributes:
    template: likewise.
    takes_system: whether a system message may come first.
    space: before a response to a dialogue.
  """

  space = ""

  def __init__(
    self,
    tokens: text_tokens.TextTokens,
    front: Ids,
    template: templates.ChatTemplate,
    ends_itself: bool,
  ):
    self._tokens, self._front = tokens, front
    self.template = template
    self.takes_system = template.takes_system
    self._ends_itself = ends_itself

  def encode(self, asked: Sequence[Asked]) -> Iterator[EncodedPrompt]:
    """What the template writes before an answer to each, however long."""
    answer = structs.Message("assistant", templates.ANSWER)
    asked_turns = [
      self._with_text(text, dialogues.turns_of(prompt))
      for text, prompt in asked
    ]
    rendered = self.template.render([(*turns, answer) for turns in asked_turns])
    befores = [
      ""
      if isinstance(text, templates.Refused)
      else text.rpartition(answer.content)[0]
      for text in rendered
    ]
    for turns, whole, before, ids in zip(
      asked_turns, rendered, befores, self._tokens.prompts(befores), strict=True
    ):
      if isinstance(whole, templates.Refused):
        yield EncodedPrompt(None, problem=REFUSED, detail=whole.reason)
      elif not before:
        detail = "it leaves the answer out"
        yield EncodedPrompt(None, problem=REFUSED, detail=detail)
      else:
        ids = np.concatenate([self._front, ids])
        yield EncodedPrompt(ids, before, tuple(turns))

  def _with_text(
    self, text: str, turns: Sequence[structs.Message]
  ) -> tuple[structs.Message, ...]:
    """The turns with the user text as, or in, the system's."""
    if not text:
      return tuple(turns)
    first, *others = turns
    if first.role == "system":
      message = structs.Message("system", f"{first.content}\n\n{text}")
      return (message, *others)
    if self.takes_system:
      return (structs.Message("system", text), *turns)
    message = structs.Message(first.role, f"{text}\n\n{first.content}")
    return (message, *others)

  def follow(self, pairs: Sequence[Pair], counts: Counts) -> Iterator[Pair]:
    """What the template writes after each prompt, for each response.

    None where it writes none that begins with the prompt.
    """
    rendered = self.template.render(
      [
        (*prompt.turns, structs.Message("assistant", text))
        for prompt, text in pairs
      ]
    )
    for (prompt, text), whole in zip(pairs, rendered, strict=True):
      refused = isinstance(whole, templates.Refused)
      if refused or not whole.startswith(prompt.text):
        counts[RESPONSE_REFUSED if refused else OTHERWISE] += 1
        yield prompt, None
        continue
      after = whole[len(prompt.text) :]
      if not self._ends_itself:
        after = after.removesuffix(self.template.after)
      counts[REWRITTEN] += text not in after
      yield prompt, after
