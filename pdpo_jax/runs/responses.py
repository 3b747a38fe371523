"""What a policy says to the prompts of examples, generated once and kept.

A line a response, in a file whose name tells the settings:

  {"sample": "9f0c…", "user_id": "4", "row": 2, "seed": 123, "response": "…"}
"""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Callable, Sequence

from typing_extensions import TypedDict

from pdpo_jax.core import kept, processes, structs
from pdpo_jax.data import config as data_config
from pdpo_jax.inference import respond, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


class Line(TypedDict):
  """Of a file of responses."""

  sample: str
  user_id: str | None
  row: int
  seed: int
  response: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all who are compared respond with.

  The template and BOS are always those of what responds.
  """

  answers: sampling.AnswersConfig
  max_prompt_tokens: int
  seed: int

  @classmethod
  def of(cls, config: config_lib.Config) -> "Settings":
    """Those of a run."""
    return cls(config.answers, config.data.max_prompt_tokens, config.seed)


def file_of(
  folder: pathlib.Path, name: str, settings: Settings
) -> pathlib.Path:
  """Where responses with these settings are.

  Args:
    folder: of a training, or of a run.
    name: of what responds, within the folder.
  """
  knobs = settings.answers.sampling()
  listed = ", ".join(f"{knob}={value}" for knob, value in knobs.items())
  # As it was written first, so that older files are found.
  text = f"SamplingSpec({listed}) {settings.max_prompt_tokens} {settings.seed}"
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  return folder / "responses" / f"{name}_{digest}.jsonl"


def read(file: pathlib.Path) -> list[Line]:
  """Those that are there; none of a file that is damaged."""
  if not kept.was_written(file):
    return []
  try:
    return kept.read_jsonl(file, Line, "responses are generated again")
  except kept.Damaged as problem:
    logger.warning("%s", problem)
    return []


def make(
  examples: Sequence[structs.PreferenceExample],
  row_of: Callable[[str | None], int],
  policy: Callable[[], policy_lib.Policy],
  base: base_lib.Base,
  data: data_config.DataConfig,
  settings: Settings,
  file: pathlib.Path,
  seeds: Sequence[int] | None = None,
) -> dict[str, str]:
  """A response to each example, by its key: kept ones, or made now and kept.

  Args:
    row_of: the user row of a user id; where it is needed, as `policy`.
    policy: gives the policy.
    data: of what responds: how it was told prompts.
    file: of `file_of`.
    seeds: of each example; `seed_of` its key without.
  """
  keys = [scores_lib.example_key(example) for example in examples]
  if seeds is None:
    seeds = [seed_of(key, settings.seed) for key in keys]
  lines = processes.from_first(lambda: read(file))
  known = {line["sample"] for line in lines}
  missing = [place for place, key in enumerate(keys) if key not in known]
  # In pieces, so that little is lost when it is interrupted.
  data = dataclasses.replace(data, max_prompt_tokens=settings.max_prompt_tokens)
  size = 4 * settings.answers.batch_size
  for start in range(0, len(missing), size):
    places = missing[start : start + size]
    rows = [row_of(examples[place].user_id) for place in places]
    texts = respond.respond(
      policy(),
      base,
      [
        structs.PromptExample(examples[place].prompt, examples[place].user_text)
        for place in places
      ],
      rows,
      [seeds[place] for place in places],
      settings.answers,
      data,
    )
    lines += [
      Line(
        sample=keys[place],
        user_id=examples[place].user_id,
        row=row,
        seed=seeds[place],
        response=text,
      )
      for place, row, text in zip(places, rows, texts, strict=True)
    ]
    if processes.is_first():
      kept.write_jsonl(file, lines)
  responses = {line["sample"]: line["response"] for line in lines}
  return {key: responses[key] for key in keys}


def seed_of(key: str, seed: int) -> int:
  """An example's seed, the same for whoever responds to it."""
  return (seed + int(key[:8], 16)) % 2**32
