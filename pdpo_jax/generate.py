r"""Answers prompts as the users of a trained run.

  python -m pdpo_jax.generate --workdir=runs/quickstart --user=4 --user=1 \
    --prompt="…"

Several users are answered side by side; without --user, the unknown user is. A
user whose text was trained with is answered with it.
"""

import dataclasses

from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import display, processes, structs
from pdpo_jax.inference import respond, sampling
from pdpo_jax.runs import run as run_lib

_WORKDIR = command_line.workdir_flag()
_USERS = command_line.user_flag()
_PROMPTS = command_line.prompt_flag()
_USER_TEXT = flags.DEFINE_string(
  "user_text",
  None,
  "What the users say of themselves. Default: what the run's data has of each; "
  "of an unknown user, nothing.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed of sampling.")
_TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "0 is greedy. Default: the run's configuration."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", None, "Default: the run's configuration."
)
_UNKNOWN = "unknown user"


def overridden(answers: sampling.AnswersConfig) -> sampling.AnswersConfig:
  """How the run samples, but for what the flags say."""
  flags_given = {
    "temperature": _TEMPERATURE.value,
    "max_new_tokens": _MAX_NEW_TOKENS.value,
  }
  changes = {k: v for k, v in flags_given.items() if v is not None}
  return dataclasses.replace(answers, **changes)


def main() -> None:
  if _WORKDIR.value is None or not _PROMPTS.value:
    raise ValueError(
      "--workdir and --prompt are needed, e.g. --workdir=runs/quickstart "
      '--user=4 --prompt="…"'
    )
  run = run_lib.Run.open(_WORKDIR.value)
  # Who and what is asked for is known before weights are read.
  rows = {user_id: run.own.row_of(user_id) for user_id in _USERS.value}
  rows = rows or {_UNKNOWN: 0}
  known = run.user_texts
  if _USER_TEXT.value is not None:
    known = dict.fromkeys(rows, _USER_TEXT.value)
  prompts = processes.from_first(command_line.read_prompts)
  asked = [
    structs.PromptExample(command_line.parse_prompt(prompt))
    for prompt in prompts
  ]
  texts = respond.answer(
    run.own.policy,
    run.base,
    asked,
    rows,
    overridden(run.config.answers),
    run.config.data,
    _SEED.value,
    known,
  )
  names = {speaker: display.name(speaker) for speaker in texts}
  width = max(map(len, names.values())) + 2
  for place, prompt in enumerate(prompts):
    if len(prompts) > 1:
      print(f"{'' if place == 0 else chr(10)}{display.visible(prompt.strip())}")
    for speaker, answers in texts.items():
      text = display.visible(answers[place]).strip() or "(empty answer)"
      indented = text.replace("\n", "\n" + " " * width)
      print(f"{names[speaker] + ':':<{width}}{indented}")


if __name__ == "__main__":
  command_line.run(main, distributed=True)
