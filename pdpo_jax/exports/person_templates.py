"""A chat template that says who is answered, by tokens for their prefix.

What it writes before an answer is, token by token, the prompt of training, with
a person's tokens where the prefix stood. It is made around the run's own
template and takes what that writes before an answer that is given, as training
did.
"""

import collections
import json
import re

import numpy as np
import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import dialogues, template_worker, templates
from pdpo_jax.exports import contents as contents_lib

# What begins the name of a token that stands for a person.
_MARK = "<|user:"
# What that becomes where somebody typed it.
_BROKEN = "<| user:"

# Jinja as `transformers`, vLLM and llama.cpp have it. There is no loop over the
# content of a message, which vLLM takes for a wish for contents in parts; and
# what `in` looks for is always defined, as llama.cpp wants it.
_AROUND = """\
{%- set person = namespace(id=user | default('', true) | string, row=0, \
prefix='', turns=[]) -%}
{%- set is_named = person.id != '' -%}
{%- for turn in messages -%}
  {%- if not is_named and turn.role == 'user' and turn.name -%}
    {%- set person.id = turn.name | string -%}
  {%- endif -%}
  {%- set words = turn.content | default('', true) -%}
  {%- if words is not string -%}
    {%- set words = words | map(attribute='text') | join('\\n') -%}
  {%- endif -%}
  {%- if MARK in words or words != turn.content | default('', true) -%}
    {%- set words = words | replace(MARK, BROKEN) -%}
    {%- set person.turns = person.turns + \
[{'role': turn.role, 'content': words}] -%}
  {%- else -%}
    {%- set person.turns = person.turns + [turn] -%}
  {%- endif -%}
{%- endfor -%}
{%- set rows = ROWS -%}
{%- if person.id in rows -%}
  {%- set person.row = rows[person.id] -%}
{%- endif -%}
{%- for place in range(PLACES) -%}
  {%- set person.prefix = \
person.prefix ~ MARK ~ person.row ~ ':' ~ place ~ '|>' -%}
{%- endfor -%}
{%- set asks = add_generation_prompt and person.turns[-1].role != 'assistant' \
-%}
ASKED{%- set messages = person.turns -%}
{%- set date_string = DATE -%}
{% set written %}
SOURCE{% endset %}
{%- if asks -%}
  {%- set written = BEFORE_ANSWER -%}
{%- endif -%}
{{- PROMPT -}}
"""
_ASKED = """\
{%- if asks -%}
  {%- set person.turns = person.turns + \
[{'role': 'assistant', 'content': ANSWER}] -%}
{%- endif -%}
"""
# As `prompt_formats.Plain` and `dialogues.as_text` write it.
_PLAIN = """\
{%- if messages[0].role == 'system' -%}
  {{- messages[0].content ~ '\\n\\n' -}}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for turn in messages -%}
  {%- if messages | length > 2 -%}
    {{- 'User: ' if turn.role == 'user' else 'Assistant: ' -}}
  {%- endif -%}
  {{- turn.content -}}
  {%- if messages | length > 2 and (asks or not loop.last) -%}
    {{- '\\n\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if asks and messages | length > 2 -%}
  {{- 'Assistant:' -}}
{%- endif -%}
"""
# Marks what an assistant said, for training; llama.cpp has no such tag.
_GENERATION = re.compile(r"({%[-+]?\s*)(end)?generation(\s*[-+]?%})")
# Prompts by which a template is compared with training's.
_PROBES = (
  "How long does it take? 12 minutes!",
  "TL;DR: ",
  (structs.Message("user", "Hi"),),
  (structs.Message("system", "I am old."), structs.Message("user", "Hi?")),
  (
    structs.Message("user", "How long?"),
    structs.Message("assistant", "Ten."),
    structs.Message("user", "Why"),
  ),
)


def token_name(row: int, place: int) -> str:
  """Of the token for one vector of a prefix."""
  return f"{_MARK}{row}:{place}|>"


def _quoted(text: str) -> str:
  """A literal of Jinja's."""
  return json.dumps(text, ensure_ascii=False)


def _fill(template: str, **values: str) -> str:
  """A template with values for its words in capitals."""
  pattern = re.compile("|".join(values))
  return pattern.sub(lambda match: values[match[0]], template)


def make(
  contents: contents_lib.Contents,
  tokenizer: transformers.PreTrainedTokenizerBase,
) -> str:
  """The template of a model that has people as tokens.

  Args:
    tokenizer: has the tokens.

  Raises:
    ValueError: if no template can write the prompts of training.
  """
  examples = [structs.PromptExample(probe) for probe in _PROBES]
  encoder = contents.encoder
  prompts = encoder.encode(examples, collections.Counter())
  first = tokenizer.convert_tokens_to_ids(token_name(0, 0))
  prefix = first + np.arange(contents.policy.user_model.num_tokens)
  behind = int(contents.policy.prefix_position == "after_bos")
  expected = {
    dialogues.turns_of(example.prompt): [*ids[:behind], *prefix, *ids[behind:]]
    for example, ids in zip(examples, prompts, strict=True)
    if ids is not None and (encoder.chat or _is_written_plainly(example.prompt))
  }
  differing = ""
  # Where a template ends in a space, that is often the next word's.
  for stripped in ("", ".rstrip(' ')"):
    source = _source(contents, stripped)
    template = templates.ChatTemplate(tokenizer, source)
    rendered = template.render([*expected], add_generation_prompt=True)
    differing = _differing(tokenizer, rendered, [*expected.values()])
    if not differing:
      return source
  raise ValueError(
    f"with people as tokens, the chat template of {template.name} would not "
    f"write the prompts of training ({differing}); use --format=merged"
  )


def _differing(tokenizer, rendered, expected) -> str:
  """The first text whose ids are not those expected; "" if there is none."""
  for text, ids in zip(rendered, expected, strict=True):
    if isinstance(text, templates.Refused):
      return text.reason
    if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
      return f"{text[-80:]!r}"
  return ""


def _is_written_plainly(prompt: structs.Prompt) -> bool:
  """Whether a plain prompt is written alike as a text and as messages."""
  return isinstance(prompt, str) or len(prompt) > 2


def _source(contents: contents_lib.Contents, stripped: str) -> str:
  chat = contents.encoder.chat
  source, asked = _PLAIN, ""
  before_answer = f"written{stripped}"
  answer = _quoted(templates.ANSWER)
  if chat:
    source = _GENERATION.sub(
      lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}",
      contents.tokenizer.chat_template.removesuffix("\n"),
    )
    asked = _fill(_ASKED, ANSWER=answer)
    before_answer = f"written.rsplit({answer}, 1)[0]{stripped}"
  return _fill(
    _AROUND,
    MARK=_quoted(_MARK),
    BROKEN=_quoted(_BROKEN),
    ROWS=json.dumps(
      {user_id: row for row, user_id in enumerate(contents.ids) if row},
      ensure_ascii=False,
    ),
    PLACES=str(contents.policy.user_model.num_tokens),
    ASKED=asked,
    DATE=_quoted(template_worker.DATE.strftime("%d %b %Y")),
    SOURCE=source,
    BEFORE_ANSWER=before_answer,
    PROMPT=" ~ ".join(_pieces(contents)),
  )


def _pieces(contents: contents_lib.Contents) -> list[str]:
  """What the prompt is put together of.

  Raises:
    ValueError: if a prefix is to stand behind a first token that is no name.
  """
  encoder = contents.encoder
  front = encoder.tokenizer.convert_ids_to_tokens(encoder.front.tolist())
  person, written = "person.prefix", "written"
  if contents.policy.prefix_position == "front":
    before = [_quoted("".join(front))] if front else []
    return [person, *before, written]
  if front:
    rest = [_quoted("".join(front[1:]))] if front[1:] else []
    return [_quoted(front[0]), person, *rest, written]
  opening = encoder.chat.template.opening if encoder.chat else ""
  for name in sorted(encoder.tokens.control, key=len, reverse=True):
    if opening.startswith(name):
      rest = f"written[{len(name)}:]"
      return [_quoted(name), person, rest]
  raise ValueError(
    "user.prefix_position is 'after_bos', and prompts of this run begin with "
    "no control token behind which a person's tokens could be written; use "
    "--format=merged"
  )
