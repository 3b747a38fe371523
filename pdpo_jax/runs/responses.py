"""What a policy says to the prompts of samples, generated once and kept.

A line a response, in a file whose name tells the settings:

  {"sample": "9f0c…", "user_id": "4", "row": 2, "seed": 123, "response": "…"}
"""

import hashlib
import logging
import pathlib
from collections.abc import Callable, Sequence

from typing_extensions import TypedDict

from pdpo_jax.runs import config as config_lib
from pdpo_jax.core import kept, processes, structs
from pdpo_jax.runs import answers
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


class Line(TypedDict):
  """Of a file of responses."""

  sample: str
  user_id: str | None
  row: int
  seed: int
  response: str


def file_of(
  folder: pathlib.Path, name: str, config: config_lib.Config
) -> pathlib.Path:
  """Where responses with these settings are.

  Args:
    folder: of a training, or of a run.
    name: of what responds, within the folder.
    config: `answers`, the limit of prompts and `seed` apply. The template is
      always that of what responds.
  """
  spec = answers.sampling_spec(config.answers)
  settings = f"{spec} {config.data.max_prompt_tokens} {config.seed}"
  digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
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
  config: config_lib.Config,
  file: pathlib.Path,
) -> dict[str, str]:
  """A response to each sample, by its key: kept ones, or made now and kept.

  Args:
    row_of: the user row of a user id; where it is needed, as `policy`.
    policy: gives the policy.
    config: as for `file_of`.
    file: of `file_of`.
  """
  keys = [scores_lib.sample_key(example) for example in examples]
  lines = processes.from_first(lambda: read(file))
  known = {line["sample"] for line in lines}
  missing = [place for place, key in enumerate(keys) if key not in known]
  # In pieces, so that little is lost when it is interrupted.
  size = 4 * config.answers.batch_size
  for start in range(0, len(missing), size):
    places = missing[start : start + size]
    seeds = [_seed_of(keys[place], config) for place in places]
    rows = [row_of(examples[place].user_id) for place in places]
    texts = answers.respond(
      policy(),
      base,
      [
        structs.PromptExample(examples[place].prompt, examples[place].user_text)
        for place in places
      ],
      rows,
      seeds,
      config,
    )
    lines += [
      Line(
        sample=keys[place],
        user_id=examples[place].user_id,
        row=row,
        seed=seed,
        response=text,
      )
      for place, row, seed, text in zip(places, rows, seeds, texts, strict=True)
    ]
    if processes.is_first():
      kept.write_jsonl(file, lines)
  responses = {line["sample"]: line["response"] for line in lines}
  return {key: responses[key] for key in keys}


def _seed_of(key: str, config: config_lib.Config) -> int:
  """A sample's seed, the same for whoever responds to it."""
  return (config.seed + int(key[:8], 16)) % 2**32
