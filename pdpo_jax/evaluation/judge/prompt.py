"""The judge's prompts, from templates that a user can change; its verdict."""

import dataclasses
import pathlib
import re

import jinja2

from pdpo_jax.core import structs
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import evidence

_FOLDER = pathlib.Path(__file__).parent / "templates"
_ASPECTS = 3  # as many as the paper's judge is told
_SIDE = r"\(\W{0,4}[ab]\W{0,4}\)"
_VERDICT = re.compile(
  r"\boutput\W{0,8}\(\W{0,4}(?P<side>[ab])\W{0,4}\)|\b(?P<tie>TIE)\b",
  re.IGNORECASE,
)
# "Output (a) or (b)" names the choice, not one side.
_EITHER = re.compile(rf"{_SIDE}\W{{0,4}}(?:or\W{{0,4}}|[/|,]\s*){_SIDE}", re.I)
# What a reasoning model thinks, also where the answer ends before the thought.
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Prompts:
  """What a judge is sent."""

  system: str
  user: str


class Template:
  """The two templates, made once.

  Raises:
    ValueError: if one cannot be read, or is malformed.
  """

  def __init__(self, config: judge_config.JudgeConfig):
    self._system = _read(config.system_template, "judge_system.txt")
    self._user = _read(config.user_template, "judge_user.txt")

  def render(
    self,
    prompt: structs.Prompt,
    a: str,
    b: str,
    user_text: str,
    known: evidence.Evidence,
  ) -> Prompts:
    """The prompts that ask for one verdict.

    Raises:
      ValueError: if a template has a field that there is not.
    """
    persona = known.persona
    fields = {
      "facts": persona.facts,
      "self_description": persona.self_description,
      "system_string": persona.system_string,
      "aspects": persona.aspects[:_ASPECTS],
      # Where a persona is known, the user's text repeats it.
      "user_text": "" if persona.facts or persona.aspects else user_text,
      "feedback": known.feedback,
      "examples": [
        {
          "prompt": as_text(example.prompt),
          "chosen": _shown(example.chosen),
          "rejected": [_shown(text) for text in example.rejected],
        }
        for example in known.examples
      ],
      "prompt": as_text(prompt),
      "a": _shown(a),
      "b": _shown(b),
    }
    return Prompts(_fill(self._system, fields), _fill(self._user, fields))


def _read(path: str, default: str) -> jinja2.Template:
  file = pathlib.Path(path) if path else _FOLDER / default
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  try:
    template = environment.from_string(file.read_text())
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"template {file} cannot be read: {error}") from error
  except jinja2.TemplateSyntaxError as error:
    raise ValueError(f"template {file}:{error.lineno}: {error}") from error
  template.filename = str(file)
  return template


def _fill(template: jinja2.Template, fields: dict) -> str:
  try:
    return template.render(fields).strip()
  except jinja2.UndefinedError as error:
    raise ValueError(
      f"template {template.filename}: {error}; there are "
      f"{', '.join(sorted(fields))}"
    ) from error


def as_text(prompt: structs.Prompt) -> str:
  """A dialogue, a paragraph a turn, with who said it."""
  if isinstance(prompt, str):
    return prompt.strip()
  return "\n\n".join(
    f"[{turn.role}]\n{turn.content.strip()}" for turn in prompt
  )


def _shown(response: str) -> str:
  return response.strip() or "(empty answer)"


def parse(answer: str) -> str | None:
  """The verdict of a judge's answer: "a", "b", "tie", or None for none.

  The last verdict counts, as reasons may mention others before. Different
  verdicts on one line, or on lines one after the other that hold nothing else,
  are none: they repeat the task rather than answer it. What stands in <think>
  does not count.
  """
  last: str | None = None
  previous_bare: str | None = None
  for line in filter(str.strip, _THOUGHT.sub("", answer).splitlines()):
    verdicts = _verdicts(line)
    bare = None
    if len(verdicts) > 1:
      last = None
    elif verdicts:
      verdict = verdicts.pop()
      bare = verdict if _is_bare(line) else None
      repeats = bare is not None and previous_bare not in (None, bare)
      last = None if repeats else verdict
      if repeats:
        bare = "several"
    previous_bare = bare
  return last


def _verdicts(line: str) -> set[str]:
  """What a line says; "a tie" in prose is no verdict."""
  if _EITHER.search(line):
    return {"a", "b"} if _VERDICT.search(line) else set()
  return {
    (match["side"] or "tie").lower()
    for match in _VERDICT.finditer(line)
    if match["side"] or match["tie"] == "TIE" or _is_bare(line)
  }


def _is_bare(line: str) -> bool:
  """Whether nothing but a verdict is on a line."""
  rest = re.sub(
    r"(?i)\b(output|verdict|answer|final)\b", "", _VERDICT.sub("", line)
  )
  return not re.search(r"\w", rest)
