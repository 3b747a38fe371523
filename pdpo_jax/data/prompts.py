"""From prompts to token ids: chat templates, plain texts, and what is cut.

A prompt over its limit loses its oldest turns. The user's text never loses its
beginning, and the last turn nothing. A plain prompt has no turns and loses its
own beginning.
"""

import collections
import functools
from collections.abc import Iterator, Sequence

import jinja2
import numpy as np
import transformers
from jaxtyping import Int

from pdpo_jax import structs

PROMPT_CUT = "prompts cut"
TEXT_CUT = "user texts cut"
TURN_TOO_LONG = "last turns too long"

# Texts that are Python lists of ids at a time; arrays are far smaller.
_BATCH = 8192
# Llama 3.1's templates and later ones tell the model the date, today's if no
# other is given: a prompt would be another one tomorrow. This is the one they
# fall back to.
TEMPLATE_DATE = "26 Jul 2024"
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "system": ""}

Ids = Int[np.ndarray, " _"]  # of any number of tokens
Counts = collections.Counter[str]


class PromptEncoder:
  """Renders prompts as one model wants them.

  Args:
    tokenizer: with an end-of-text token.
    template: "chat" for the tokenizer's chat template; "plain" for the text
      alone; "auto" for "chat" where there is a template.
    max_tokens: limit of a prompt, user text included. The user text is given
      half of it at most, whatever the prompt, so that it is the same in each.

  Raises:
    ValueError: if the tokenizer lacks what is asked for.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
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
    self.chat = template == "chat" or (
      template == "auto" and bool(tokenizer.chat_template)
    )

  @functools.cached_property
  def end_id(self) -> int:
    """The token that ends a response: of the turn, or of the text."""
    if self.chat:
      turns = [_message("user", "x"), _message("assistant", "response")]
      rendered = self._template(turns, add_generation_prompt=False)
      added = self.tokenizer.added_tokens_decoder
      for token in map(int, self._ids(rendered.rpartition("response")[2])):
        if token in added and added[token].special:
          return token
    return self.tokenizer.eos_token_id

  def encode(
    self, prompts: Sequence[structs.PromptExample], counts: Counts
  ) -> list[Ids | None]:
    """Token ids of each prompt, or None where its last turn is too long.

    Args:
      prompts: not empty ones.
      counts: is told what was cut.
    """
    for place, prompt in enumerate(prompts):
      _check(place, len(prompts), prompt)
    texts = {prompt.user_text for prompt in prompts}
    short = {text: self._shorten(text) for text in texts}
    counts[TEXT_CUT] += sum(short[p.user_text] != p.user_text for p in prompts)
    asked = [(short[p.user_text], p.prompt) for p in prompts]
    encode = self._encode_turns if self.chat else self._encode_plain
    return list(encode(asked, counts))

  def encode_responses(
    self, replies: Sequence[tuple[structs.Prompt, str]]
  ) -> Iterator[Ids]:
    """Token ids of (prompt, response)'s responses, with the end token.

    A turn of a dialogue has no space around it, but what the format puts.
    """
    texts = []
    for prompt, text in replies:
      if self.chat:
        texts.append(text.strip())
      else:
        texts.append(text if isinstance(prompt, str) else f" {text.strip()}")
    end = np.array([self.end_id], np.int32)
    for ids in self._encode(texts):
      yield np.concatenate([ids, end])

  def _shorten(self, text: str) -> str:
    """The text, or as much of its beginning as fits into half the limit."""
    limit = self.max_tokens // 2
    ids = self._ids(text)
    return text if len(ids) <= limit else self.tokenizer.decode(ids[:limit])

  def _encode_turns(self, asked, counts) -> Iterator[Ids | None]:
    rendered = self._encode(
      [self._render(text, _turns(prompt)) for text, prompt in asked]
    )
    for (text, prompt), first in zip(asked, rendered, strict=True):
      ids, turns = self._with_bos(first), _turns(prompt)
      while len(ids) > self.max_tokens and _without_oldest(turns) != turns:
        turns = _without_oldest(turns)
        ids = self._with_bos(self._ids(self._render(text, turns)))
      if len(ids) > self.max_tokens:
        counts[TURN_TOO_LONG] += 1
        yield None
      else:
        counts[PROMPT_CUT] += len(turns) < len(_turns(prompt))
        yield ids

  def _encode_plain(self, asked, counts) -> Iterator[Ids | None]:
    heads = self._encode([f"{text}\n\n" if text else "" for text, _ in asked])
    tails = self._encode([_as_text(prompt) for _, prompt in asked])
    for (_, prompt), head, tail in zip(asked, heads, tails, strict=True):
      room = self.max_tokens - self._adds_bos - len(head)
      if len(tail) > room and not isinstance(prompt, str):
        turns = prompt
        while len(tail) > room and _without_oldest(turns) != turns:
          turns = _without_oldest(turns)
          tail = self._ids(_as_text(turns))
        if len(tail) > room:
          counts[TURN_TOO_LONG] += 1
          yield None
          continue
        counts[PROMPT_CUT] += 1
      elif len(tail) > room:
        counts[PROMPT_CUT] += 1
        tail = tail[len(tail) - room :]
      yield self._with_bos(np.concatenate([head, tail]))

  def _render(self, text: str, turns: Sequence[structs.Message]) -> str:
    """The chat template's text, with the user text as, or in, the system's."""
    turns = list(turns)
    if text and turns[0].role == "system":
      turns[0] = _message("system", f"{turns[0].content}\n\n{text}")
    elif text and self.takes_system:
      turns.insert(0, _message("system", text))
    elif text:
      turns[0] = _message(turns[0].role, f"{text}\n\n{turns[0].content}")
    try:
      return self._template(turns, add_generation_prompt=True)
    except jinja2.TemplateError as error:
      raise ValueError(
        "the tokenizer's chat template refuses a dialogue of the roles "
        f"{[turn.role for turn in turns]}, {turns[0].content[:40]!r}…: "
        f"{error}; leave it out, or use data.template 'plain'"
      ) from error

  def _template(self, turns, add_generation_prompt):
    return self.tokenizer.apply_chat_template(
      [{"role": turn.role, "content": turn.content} for turn in turns],
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      date_string=TEMPLATE_DATE,
    )

  @functools.cached_property
  def takes_system(self) -> bool:
    """Whether a system message may come first; some templates refuse it.

    A user's text then stands in the user's first turn.
    """
    if not self.chat:
      return True
    turns = [_message("system", "taken?"), _message("user", "x")]
    try:
      return "taken?" in self._template(turns, add_generation_prompt=True)
    except jinja2.TemplateError:
      return False

  @functools.cached_property
  def _adds_bos(self) -> bool:
    ids = self.tokenizer("x")["input_ids"]
    return bool(ids and ids[0] == self.tokenizer.bos_token_id)

  @functools.cached_property
  def adds_bos_to_chats(self) -> bool:
    """Whether the tokenizer's BOS goes before a dialogue's; its own may do."""
    ids = self._ids(self._render("", (_message("user", "x"),)))
    return len(self._with_bos(ids)) > len(ids)

  def _with_bos(self, ids: Ids) -> Ids:
    """Exactly one BOS, where the tokenizer wants one and no template put it."""
    bos = self.tokenizer.bos_token_id
    if self._adds_bos and (not len(ids) or ids[0] != bos):
      return np.concatenate([np.array([bos], np.int32), ids])
    return ids

  def _ids(self, text: str) -> Ids:
    return next(self._encode([text]))

  def _encode(self, texts: Sequence[str]) -> Iterator[Ids]:
    """Ids of the texts alone: no BOS, nothing after."""
    for start in range(0, len(texts), _BATCH):
      encoding = self.tokenizer(
        list(texts[start : start + _BATCH]),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
      )
      for ids in encoding["input_ids"]:
        yield np.array(ids, np.int32)


def _message(role: str, content: str) -> structs.Message:
  return structs.Message(role, content)


def _turns(prompt: structs.Prompt) -> tuple[structs.Message, ...]:
  if isinstance(prompt, str):
    return (_message("user", prompt),)
  return prompt


def _as_text(prompt: structs.Prompt) -> str:
  if isinstance(prompt, str):
    return prompt
  said = [_SPEAKERS[turn.role] + turn.content for turn in prompt]
  return "\n\n".join([*said, _SPEAKERS["assistant"].rstrip()])


def _without_oldest(
  turns: tuple[structs.Message, ...],
) -> tuple[structs.Message, ...]:
  """Without the oldest user turn and what answered it; the last one stays.

  A system message is no turn and stays too.
  """
  first = int(turns[0].role == "system")
  for place in range(first + 1, len(turns)):
    if turns[place].role == "user":
      return turns[:first] + turns[place:]
  return turns


def _check(place: int, count: int, example: structs.PromptExample) -> None:
  prompt = example.prompt
  if not prompt:
    raise ValueError(
      f"prompt {place} of {count} is empty; a response needs at least one "
      "token before it"
    )
  if isinstance(prompt, str):
    return
  if any(turn.role not in _SPEAKERS for turn in prompt):
    raise ValueError(
      f"prompt {place} of {count} has the roles "
      f"{[turn.role for turn in prompt]}; {list(_SPEAKERS)} are known"
    )
  if prompt[-1].role != "user":
    raise ValueError(
      f"prompt {place} of {count} ends with a turn of {prompt[-1].role!r}; the "
      "last turn must be the user's"
    )
