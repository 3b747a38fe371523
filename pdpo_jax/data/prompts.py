"""From prompts to token ids: what people wrote, and what is cut.

A prompt over its limit loses its oldest turns. The user's text never loses its
beginning, and the last turn nothing. A plain prompt has no turns and loses its
own beginning. `prompt_formats` has what a model wants around the texts.
"""

import bisect
import collections
import itertools
from collections.abc import Sequence

import numpy as np
import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dialogues, prompt_formats, templates, text_tokens

PROMPT_CUT = "prompts cut"
TEXT_CUT = "user texts cut"
TURN_TOO_LONG = "last turns too long"
SYSTEM_TOO_LONG = "system messages too long"
APART = "responses that begin inside of a token"
STRIPPED = "answers without the space around them"
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
EncodedPrompt = prompt_formats.EncodedPrompt


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
    chat: the template's format; None for plain texts.
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
    _check(tokenizer, template, max_tokens, add_bos)
    self.tokenizer = tokenizer
    self.max_tokens = max_tokens
    own_template = "" if template in data_config.TEMPLATES else template
    is_chat = template == "chat" or (
      template == "auto" and bool(tokenizer.chat_template)
    )
    chat_template, opening, after = None, "", ""
    if own_template or is_chat:
      chat_template = templates.ChatTemplate(tokenizer, own_template)
      opening, after = chat_template.opening, chat_template.after
    self.tokens = text_tokens.TextTokens(tokenizer, opening + after)
    self.front = self.tokens.front
    bos = tokenizer.bos_token_id
    if add_bos and not len(self.front):
      self.front = np.array([bos], np.int32)
    first = self.front
    self.end_id = tokenizer.eos_token_id
    self._ends_itself = False
    if chat_template:
      first = self.tokens.ids(opening)
      if np.array_equal(first[: len(self.front)], self.front):
        self.front = self.front[:0]
      last = self.tokens.ids(after)
      ends = last[np.isin(last, self.tokens.control_ids)]
      self._ends_itself = bool(len(ends))
      self.end_id = int(ends[0]) if len(ends) else self.end_id
    first = [*self.front, *first][:1]
    self.begins_with_bos = bos is not None and first == [bos]
    self.chat = None
    self._format = prompt_formats.Plain(self.tokens, self.front)
    if chat_template:
      self._format = self.chat = prompt_formats.Chat(
        self.tokens, self.front, chat_template, self._ends_itself
      )
    end_tokens = tokenizer.convert_ids_to_tokens([self.end_id])
    self._ends = tuple({tokenizer.eos_token, *end_tokens, *_ENDS})
    self._shortened: dict[str, str] = {}

  @property
  def takes_system(self) -> bool:
    """Whether a system message may come first; some templates refuse it.

    A user's text then stands in the user's first turn.
    """
    return self._format.takes_system

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
    asked = [self._prepare(prompt, counts) for prompt in prompts]
    encoded = []
    for (text, prompt), whole in zip(
      asked, self._format.encode(asked), strict=True
    ):
      if self._is_long(whole):
        whole = self._cut(text, prompt)
        counts[PROMPT_CUT] += whole.ids is not None
      if whole.problem:
        counts[whole.problem] += 1
      encoded.append(whole)
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
    pairs = list(self._format.follow(pairs, counts))
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
        content = self._bare(content, counts)
      turns.append(structs.Message(turn.role, self._words(content, counts)))
    return text, tuple(turns)

  def _prepare_response(self, prompt, text, counts) -> str:
    if prompt.turns:
      text = self._format.space + self._bare(text, counts)
    else:
      text = self._without_end(text, counts)
    return self._words(text, counts)

  def _bare(self, answer: str, counts: Counts) -> str:
    """An answer in a dialogue, the same as a response and in later turns."""
    text = self._without_end(answer, counts)
    bare = text.strip()
    counts[STRIPPED] += bare != text
    return bare

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

  def _cut(self, text: str, prompt: structs.Prompt) -> EncodedPrompt:
    """A prompt that is too long, without its oldest turns or its beginning."""
    if isinstance(prompt, str) and not self.chat:
      return self._without_beginning(text, prompt)
    left = dialogues.turns_of(prompt)
    while (fewer := dialogues.without_oldest(left)) != left:
      left = fewer
      encoded = self._encode_one(text, left)
      if not self._is_long(encoded):
        return encoded
    # What is to blame that even these turns are too long?
    if left[0].role == "system":
      rest = self._encode_one(text, left[1:])
      if rest.ids is not None and not self._is_long(rest):
        return EncodedPrompt(None, problem=SYSTEM_TOO_LONG)
    return EncodedPrompt(None, problem=TURN_TOO_LONG)

  def _without_beginning(self, text: str, prompt: str) -> EncodedPrompt:
    """The prompt's end, as much as fits."""
    starts = self.tokens.starts(prompt)
    over = len(self._encode_one(text, prompt).ids) - self.max_tokens
    cut = starts[min(over, len(starts) - 1)]
    while True:
      while cut < len(prompt) and dialogues.inside_character(prompt, cut):
        cut += 1
      if cut >= len(prompt):
        return EncodedPrompt(None, problem=TURN_TOO_LONG)
      encoded = self._encode_one(text, prompt[cut:])
      if not self._is_long(encoded):
        return encoded
      # A character has up to four bytes, which are a token each at most.
      cut += -(-(len(encoded.ids) - self.max_tokens) // 4)

  def _encode_one(self, text: str, prompt: structs.Prompt) -> EncodedPrompt:
    (encoded,) = self._format.encode([(text, prompt)])
    return encoded

  def _is_long(self, encoded: EncodedPrompt) -> bool:
    return encoded.ids is not None and len(encoded.ids) > self.max_tokens


def _check(
  tokenizer: transformers.PreTrainedTokenizerBase,
  template: str,
  max_tokens: int,
  add_bos: bool,
) -> None:
  """Checks that a tokenizer has what is asked for."""
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
  if add_bos and tokenizer.bos_token_id is None:
    raise ValueError(
      "data.add_bos is set, and the tokenizer has no bos_token to put before "
      "a prompt; leave it off"
    )


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
