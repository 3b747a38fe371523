r"""A training step on dialogues that share trunks, beside a row an example.

  python -m benchmarks.dialogue_training
  python -m benchmarks.dialogue_training --samples=16 --dialogues=40

SmolLM2-135M's sizes with random weights in float32, LoRA of rank 8 on every
linear layer, both branches, `base.remat` "full". Dialogues are as in
`benchmarks/dialogues.py`. An epoch has the same comparisons in both layouts,
which take turns, with an optimizer update a batch; shapes are compiled before.
Where others use the cores too, CPU time tells more than the clock does. Memory
is what the compiler plans for temporaries of the largest shape. Writes
`benchmarks/dialogue_training.json`.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import dialogues, side_by_side
from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import optimizer, pdpo, policies
from pdpo_jax.training import step as step_lib

_EXAMPLES = flags.DEFINE_integer("samples", 8, "Comparisons a batch.")
_DIALOGUES = flags.DEFINE_integer("dialogues", 12, "Of an epoch.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Epochs that are timed.")
_LIMIT = 2000  # tokens of a prompt; none is cut


def make_config(batch_size: int) -> config_lib.Config:
  config = config_lib.Config()
  config.base.remat = "full"
  config.lora.targets = ("all",)
  config.lora.dropout = 0.0
  config.loss.beta = 0.1
  config.train.batch_size = batch_size
  return config


class Layout:
  """One way to lay out an epoch, with its compiled steps."""

  def __init__(self, name: str, examples, config, *, share_trunks: bool):
    self.name = name
    batches = batching.PreferenceBatches(
      examples,
      np.zeros((len(examples), dialogues.FIRST), np.float32),
      config.train.batch_size,
      0,
      config.user.num_tokens,
      max_shapes=2,
      share_trunks=share_trunks,
    )
    self.positions, self.padding = batches.positions, batches.padding_share
    arch = policy_lib.PRESETS["smollm2-135m"]
    make = policies.policy_factory(config.recipe, arch, dialogues.PEOPLE + 1)
    # Prefixes of zeros would leave every layer's norm without a scale.
    table = 0.02 * jax.random.normal(
      jax.random.key(0), (arch.vocab_size, arch.width)
    )
    policy = nnx.split(jax.jit(make)(table), policy_lib.trainable, ...)
    graphdef, trainable, self._frozen = policy
    transformation = optimizer.make_optimizer(config.train, 10_000)
    self._state = structs.TrainState(
      jnp.zeros((), jnp.int32), trainable, transformation.init(trainable)
    )
    step = step_lib.make_train_step(
      graphdef, pdpo.make_objective(config.recipe), transformation
    )
    self._batches = [jax.tree.map(jnp.asarray, b) for b in batches.in_order()]
    self._compiled, self.temporaries = {}, 0
    for batch in self._batches:
      if self._shape(batch) in self._compiled:
        continue
      compiled = step.lower(self._state, self._frozen, batch).compile()
      self._compiled[self._shape(batch)] = compiled
      needed = compiled.memory_analysis().temp_size_in_bytes
      self.temporaries = max(self.temporaries, needed)

  @staticmethod
  def _shape(batch):
    leaves, tree = jax.tree.flatten(batch)
    return tree, tuple(leaf.shape for leaf in leaves)

  def epoch(self) -> tuple[float, float]:
    """Seconds by the clock and of all cores."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for batch in self._batches:
      run = self._compiled[self._shape(batch)]
      self._state, metrics = run(self._state, self._frozen, batch)
      assert np.isfinite(float(metrics["loss"])), (self.name, metrics)
    return time.perf_counter() - start, time.process_time() - cpu_start


def main(argv) -> None:
  del argv
  vocab_size = policy_lib.PRESETS["smollm2-135m"].vocab_size
  examples = dialogues.draw(_DIALOGUES.value, _LIMIT, vocab_size)
  config = make_config(_EXAMPLES.value)
  layouts = [
    Layout("trunks", examples, config, share_trunks=True),
    Layout("a row an example", examples, config, share_trunks=False),
  ]
  turns = [[] for _ in layouts]
  for number in range(1 + _REPEATS.value):
    for own, layout in zip(turns, layouts, strict=True):
      seconds = layout.epoch()
      if number:  # The first of each warms up.
        own.append(seconds)
        print(f"{layout.name}: {seconds[0]:.1f} s, CPU {seconds[1]:.1f} s")
  rows = []
  for own, layout in zip(turns, layouts, strict=True):
    clock, cpu = (statistics.median(each) for each in zip(*own, strict=True))
    rows.append(
      {
        "layout": layout.name,
        "positions": layout.positions,
        "padding": layout.padding,
        "seconds": clock,
        "cpu_seconds": cpu,
        "temporaries": layout.temporaries,
      }
    )
  print(f"\n{len(examples)} comparisons in {_DIALOGUES.value} dialogues")
  print(
    side_by_side.table(
      ("", "positions", "padding", "s", "ratio", "CPU s", "ratio", "MB"),
      [
        (
          row["layout"],
          f"{row['positions']:,}",
          f"{row['padding']:.1%}",
          f"{row['seconds']:.1f}",
          f"{row['seconds'] / rows[0]['seconds']:.2f}",
          f"{row['cpu_seconds']:.1f}",
          f"{row['cpu_seconds'] / rows[0]['cpu_seconds']:.2f}",
          f"{row['temporaries'] / 1e6:,.0f}",
        )
        for row in rows
      ],
    )
  )
  side_by_side.write(__file__, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
