"""From prompts to token ids: chat templates, plain texts, and what is cut.

A prompt over its limit loses its oldest turns. The user's text never loses its
beginning, and the last turn nothing. A plain prompt has no turns and loses its
own beginning.
"""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dialogues, templates, text_tokens

PROMPT_CUT = "prompts cut"
TEXT_CUT = "user texts cut"
TURN_TOO_LONG = "last turns too long"
SYSTEM_TOO_LONG = "system messages too long"
REFUSED = "dialogues that the template refuses"
RESPONSE_REFUSED = "responses that the template refuses"
OTHERWISE = "responses that the template writes after another prompt"
REWRITTEN = "responses that the template rewrites"
APART = "responses that begin inside of a token"
STRIPPED = "responses without the space around them"
END_REMOVED = "end tokens removed from texts"
AS_TEXT = "texts with control tokens as text"

# What ends a turn or a text with one model or another. Data made with one have
# it at the end of responses, where it was never said.
_ENDS = (
  "</s>",
  "<eos>",
  "<|end|>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<|end_of_turn|>",
  "<|END_OF_TURN_TOKEN|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|im_end|>",
  "<|return|>",
  "<end_of_turn>",
  "<｜end▁of▁sentence｜>",
)

# More than any prompt has.
_UNLIMITED = 2**31

Ids = text_tokens.Ids
Counts = collections.Counter[str]


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


class PromptEncoder:
  """Renders prompts as one model wants them.

  Args:
    tokenizer: with an end-of-text token.
    template: "chat" for the tokenizer's chat template; "plain" for the text
      alone; "auto" for "chat" where there is a template; or the source of a
      template to be used in place of the tokenizer's.
    max_tokens: limit of a prompt, user text included. The user text is given
      half of it at most, whatever the prompt, so that it is the same in each.
    add_bos: whether a prompt begins with BOS though the tokenizer puts none.

  Attributes:
    tokens: of texts.
    front: ids before a prompt: a BOS, where there is to be one and the template
      does not put it.
    begins_with_bos: whether a prompt does, by whoever puts it.
    end_id: the token that ends a response: of the turn, or of the text.

  Raises:
    ValueError: if the tokenizer lacks what is asked for.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
    add_bos: bool = False,
  ):
    if max_tokens < 1:
      raise ValueError(f"max_prompt_tokens {max_tokens} must be 1 or more")
    if tokenizer.eos_token_id is None:
      raise ValueError(
        "the tokenizer has no eos_token, which ends a response; set one"
      )
    if template == "chat" and not tokenizer.chat_template:
      raise ValueError(
        "data.template is 'chat', but the tokenizer has no chat template; use "
        "'plain', or an instruct model"
      )
    self.tokenizer = tokenizer
    self.max_tokens = max_tokens
    own_template = "" if template in data_config.TEMPLATES else template
    self.chat = (
      bool(own_template)
      or template == "chat"
      or (template == "auto" and bool(tokenizer.chat_template))
    )
    self.end_id = tokenizer.eos_token_id
    self._ends_itself = False
    written = ""
    if self.chat:
      self.template = templates.ChatTemplate(tokenizer, own_template)
      written = self.template.opening + self.template.after
    self.tokens = text_tokens.TextTokens(tokenizer, written)
    self.front = self.tokens.front
    bos = tokenizer.bos_token_id
    if add_bos and bos is None:
      raise ValueError(
        "data.add_bos is set, and the tokenizer has no bos_token to put before "
        "a prompt; leave it off"
      )
    if add_bos and not len(self.front):
      self.front = np.array([bos], np.int32)
    opening = self.front
    if self.chat:
      opening = self.tokens.ids(self.template.opening)
      if np.array_equal(opening[: len(self.front)], self.front):
        self.front = self.front[:0]
      last = self.tokens.ids(self.template.after)
      ends = last[np.isin(last, self.tokens.control_ids)]
      self._ends_itself = bool(len(ends))
      self.end_id = int(ends[0]) if len(ends) else self.end_id
    first = [*self.front, *opening][:1]
    self.begins_with_bos = bos is not None and first == [bos]
    own = tokenizer.convert_ids_to_tokens([self.end_id])
    self._ends = tuple({tokenizer.eos_token, *own, *_ENDS})
    self._shortened: dict[str, str] = {}

  @property
  def takes_system(self) -> bool:
    """Whether a system message may come first; some templates refuse it.

    A user's text then stands in the user's first turn.
    """
    return not self.chat or self.template.takes_system

  def encode(
    self, prompts: Sequence[dialogues.Asked], counts: Counts
  ) -> list[Ids | None]:
    """Token ids of each prompt; None where `encode_prompts` has a problem."""
    return [prompt.ids for prompt in self.encode_prompts(prompts, counts)]

  def encode_prompts(
    self, prompts: Sequence[dialogues.Asked], counts: Counts
  ) -> list[EncodedPrompt]:
    """Token ids of each prompt, or what is the matter with it.

    Args:
      prompts: not empty ones.
      counts: is told what was cut or changed.
    """
    dialogues.check(prompts)
    encode = self._encode_turns if self.chat else self._encode_plain
    encoded = list(encode([self._prepare(p, counts) for p in prompts], counts))
    for each in encoded:
      if each.problem:
        counts[each.problem] += 1
    return encoded

  def encode_responses(
    self,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[str]],
    counts: Counts,
  ) -> list[list[Ids | None]]:
    """Token ids of the responses to each prompt, with the end token.

    They are those that follow the prompt's in the whole text, which the
    template writes; None where it writes none that begins with the prompt.
    Around a turn of a dialogue there is no space but what the format puts.

    Args:
      prompts: with ids.
      responses: to each prompt.
      counts: is told what was changed.
    """
    pairs = [
      (prompt, self._prepare_response(prompt, text, counts))
      for prompt, texts in zip(prompts, responses, strict=True)
      for text in texts
    ]
    if self.chat:
      pairs = list(self._follow_turns(pairs, counts))
    written = [
      (prompt.text, prompt.ids[len(self.front) :], text)
      for prompt, text in pairs
      if text is not None
    ]
    following = iter(self.tokens.following(written))
    encoded = []
    for _, text in pairs:
      if text is None:
        encoded.append(None)
        continue
      ids, joined = next(following)
      counts[APART] += not joined
      encoded.append(self._ended(ids))
    rest = iter(encoded)
    return [list(itertools.islice(rest, len(each))) for each in responses]

  def _ended(self, ids: Ids) -> Ids:
    """With one end token: the first of the template's, or the tokenizer's."""
    if self._ends_itself:
      places = np.flatnonzero(np.isin(ids, self.tokens.control_ids))
      if len(places):
        return ids[: places[0] + 1]
    return np.concatenate([ids, np.array([self.end_id], np.int32)])

  def _follow_turns(self, pairs, counts) -> Iterator[tuple]:
    """What the template writes after each prompt, for each response."""
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

  def _prepare(self, prompt, counts) -> tuple[str, structs.Prompt]:
    """User text and prompt with people's words marked, the former shortened."""
    text = prompt.user_text
    if text not in self._shortened:
      self._shortened[text] = self._shorten(text)
    counts[TEXT_CUT] += self._shortened[text] != text
    text = self._words(self._shortened[text], counts)
    if isinstance(prompt.prompt, str):
      return text, self._words(prompt.prompt, counts)
    turns = []
    for turn in prompt.prompt:
      content = turn.content
      if turn.role == "assistant":
        content = self._without_end(content, counts)
      turns.append(structs.Message(turn.role, self._words(content, counts)))
    return text, tuple(turns)

  def _prepare_response(self, prompt, text, counts) -> str:
    text = self._without_end(text, counts)
    if prompt.turns:
      bare = text.strip()
      counts[STRIPPED] += bare != text
      text = bare if self.chat else f" {bare}"
    return self._words(text, counts)

  def _words(self, text: str, counts: Counts) -> str:
    words = self.tokens.words(text)
    counts[AS_TEXT] += words != text
    return words

  def _without_end(self, text: str, counts: Counts) -> str:
    bare = text
    while (trimmed := bare.rstrip()).endswith(self._ends):
      end = max(filter(trimmed.endswith, self._ends), key=len)
      bare = trimmed[: -len(end)].rstrip()
    counts[END_REMOVED] += bare != text
    return bare

  def _shorten(self, text: str) -> str:
    """The text, or as much of its beginning as fits into half the limit."""

    def count(end: int) -> int:
      return len(self.tokens.ids(self.tokens.words(text[:end])))

    limit = self.max_tokens // 2
    if count(len(text)) <= limit:
      return text
    end = bisect.bisect_right(range(len(text)), limit, key=count) - 1
    while end > 0 and dialogues.inside_character(text, end):
      end -= 1
    return text[:end]

  def _encode_turns(self, asked, counts) -> Iterator[EncodedPrompt]:
    asked_turns = [
      self._with_text(text, dialogues.turns_of(p)) for text, p in asked
    ]
    for (text, prompt), turns, encoded in zip(
      asked, asked_turns, self._render(asked_turns), strict=True
    ):
      left = dialogues.turns_of(prompt)
      while self._is_long(encoded) and dialogues.without_oldest(left) != left:
        left = dialogues.without_oldest(left)
        turns = self._with_text(text, left)
        (encoded,) = self._render([turns])
      if self._is_long(encoded):
        encoded = self._too_long(
          left,
          lambda rest, text=text: self._render([self._with_text(text, rest)]),
        )
      counts[PROMPT_CUT] += (
        encoded.ids is not None and left != dialogues.turns_of(prompt)
      )
      yield encoded

  def _render(self, dialogues) -> Iterator[EncodedPrompt]:
    """What the template writes before an answer to each."""
    answer = structs.Message("assistant", templates.ANSWER)
    rendered = self.template.render([(*turns, answer) for turns in dialogues])
    befores = [
      ""
      if isinstance(text, templates.Refused)
      else text.rpartition(answer.content)[0]
      for text in rendered
    ]
    for turns, whole, before, ids in zip(
      dialogues, rendered, befores, self.tokens.prompts(befores), strict=True
    ):
      if isinstance(whole, templates.Refused):
        yield EncodedPrompt(None, problem=REFUSED, detail=whole.reason)
      elif not before:
        detail = "it leaves the answer out"
        yield EncodedPrompt(None, problem=REFUSED, detail=detail)
      else:
        yield EncodedPrompt(self._fronted(ids), before, tuple(turns))

  def _with_text(self, text, turns) -> tuple[structs.Message, ...]:
    """The turns with the user text as, or in, the system's."""
    if not text:
      return turns
    first = turns[0]
    if first.role == "system":
      told = structs.Message("system", f"{first.content}\n\n{text}")
      return (told, *turns[1:])
    if self.takes_system:
      return (structs.Message("system", text), *turns)
    told = structs.Message(first.role, f"{text}\n\n{first.content}")
    return (told, *turns[1:])

  def _encode_plain(self, asked, counts) -> Iterator[EncodedPrompt]:
    for (text, prompt), encoded in zip(asked, self._join(asked), strict=True):
      if not self._is_long(encoded):
        yield encoded
        continue
      if isinstance(prompt, str):
        encoded = self._without_beginning(text, prompt)
      else:
        left = prompt
        while self._is_long(encoded) and dialogues.without_oldest(left) != left:
          left = dialogues.without_oldest(left)
          (encoded,) = self._join([(text, left)])
        if self._is_long(encoded):
          encoded = self._too_long(
            left, lambda rest, text=text: self._join([(text, rest)])
          )
      counts[PROMPT_CUT] += encoded.ids is not None
      yield encoded

  def _join(self, asked) -> Iterator[EncodedPrompt]:
    """A plain prompt behind each user text."""
    texts = [
      "\n\n".join(filter(None, [text, dialogues.as_text(prompt)]))
      for text, prompt in asked
    ]
    for (_, prompt), text, ids in zip(
      asked, texts, self.tokens.prompts(texts), strict=True
    ):
      turns = () if isinstance(prompt, str) else prompt
      yield EncodedPrompt(self._fronted(ids), text, turns)

  def _without_beginning(self, text: str, prompt: str) -> EncodedPrompt:
    """The prompt's end, as much as fits."""
    starts = self.tokens.starts(prompt)
    (encoded,) = self._join([(text, prompt)])
    over = len(encoded.ids) - self.max_tokens
    cut = starts[min(over, len(starts) - 1)]
    while True:
      while cut < len(prompt) and dialogues.inside_character(prompt, cut):
        cut += 1
      if cut >= len(prompt):
        return EncodedPrompt(None, problem=TURN_TOO_LONG)
      (encoded,) = self._join([(text, prompt[cut:])])
      if not self._is_long(encoded):
        return encoded
      # A character has up to four bytes, which are a token each at most.
      cut += -(-(len(encoded.ids) - self.max_tokens) // 4)

  def _too_long(self, turns, encode) -> EncodedPrompt:
    """What is to blame for turns that are too long without the oldest."""
    if turns[0].role == "system":
      (rest,) = encode(turns[1:])
      if rest.ids is not None and not self._is_long(rest):
        return EncodedPrompt(None, problem=SYSTEM_TOO_LONG)
    return EncodedPrompt(None, problem=TURN_TOO_LONG)

  def _is_long(self, encoded: EncodedPrompt) -> bool:
    return encoded.ids is not None and len(encoded.ids) > self.max_tokens

  def _fronted(self, ids: Ids) -> Ids:
    return np.concatenate([self.front, ids])


def make_encoder(
  tokenizer: transformers.PreTrainedTokenizerBase, data: data_config.DataConfig
) -> PromptEncoder:
  """The encoder of a run's prompts; with `truncation` "keep_start", uncut.

  Raises:
    ValueError: if the tokenizer lacks what is asked for.
  """
  limit = data.max_prompt_tokens
  return PromptEncoder(
    tokenizer,
    data.template,
    _UNLIMITED if data.truncation == "keep_start" else limit,
    data.add_bos,
  )
