r"""What a step costs by the number of users: sparse, dense and cluster models.

  python -m benchmarks.users
  python -m benchmarks.users --users=100 --users=1000000 --repeats=50

A small GPT-J with random weights, batches of 16 users drawn at random. Times
are medians of steps that take turns with those of the shortest table, so that a
noisy machine disturbs both alike; memory is what the compiled step holds and
allocates.

Hardware: CPU with 8 GB for a million users. Writes `benchmarks/users.json`.
"""

import dataclasses
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import gptj, layers, user_model
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import optimizer, recipes
from pdpo_jax.training import step as step_lib

_USERS = flags.DEFINE_multi_integer(
  "users", [100, 1_000, 10_000, 100_000, 1_000_000], "Lengths of the table."
)
_REPEATS = flags.DEFINE_integer("repeats", 30, "Timed steps of each.")

_ARCH = gptj.Architecture(512, 64, 2, 2, 256, 16, max_positions=256)
_TOKENS, _CLUSTERS, _BATCH = 4, 10, 16
_MODELS = {
  "individual, sparse": ("individual", True),
  "individual, dense": ("individual", False),
  "cluster, sparse": ("cluster", True),
}


@dataclasses.dataclass
class Timed:
  """A compiled step with its state."""

  step: object
  state: structs.TrainState
  frozen: nnx.State
  held: int  # bytes
  temporary: int  # bytes
  seconds: list[float] = dataclasses.field(default_factory=list)

  def run(self, batch: structs.PreferenceBatch) -> None:
    start = time.perf_counter()
    self.state, metrics = self.step(self.state, self.frozen, batch)
    jax.block_until_ready(metrics)
    self.seconds.append(time.perf_counter() - start)


def make(kind: str, sparse: bool, num_users: int) -> Timed:
  """A policy of random weights, and a step of it."""
  spec = user_model.UserConfig(
    kind=kind, num_tokens=_TOKENS, num_clusters=_CLUSTERS
  )
  lora = layers.LoraConfig(_ARCH.linears, 8, 16.0)
  lm = gptj.GPTJ(_ARCH, lora=lora, rngs=nnx.Rngs(0, lora=1))
  table = lm.embed(jnp.arange(_ARCH.vocab_size))
  users = user_model.make_user_model(spec, num_users + 1, table, nnx.Rngs(2))
  graphdef, trainable, frozen = nnx.split(
    policy_lib.Policy(lm, users), policy_lib.trainable, ...
  )
  transformation = optimizer.make_optimizer(recipes.TrainConfig(), 1000)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32), trainable, transformation.init(trainable)
  )
  step = step_lib.make_train_step(
    graphdef, objective_lib.LossConfig(), transformation, sparse_users=sparse
  )
  compiled = step.lower(state, frozen, batch_of(0, num_users)).compile()
  memory = compiled.memory_analysis()
  return Timed(
    compiled,
    state,
    frozen,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
  )


def batch_of(seed: int, num_users: int) -> structs.PreferenceBatch:
  """Random tokens of random users."""
  rng = np.random.default_rng(seed)
  prompt = rng.integers(0, _ARCH.vocab_size, (_BATCH, 48), dtype=np.int32)
  responses = rng.integers(0, _ARCH.vocab_size, (_BATCH, 2, 24), dtype=np.int32)
  return jax.tree.map(
    jnp.asarray,
    structs.PreferenceBatch(
      index=np.arange(_BATCH, dtype=np.int32),
      user_row=rng.integers(1, num_users + 1, _BATCH).astype(np.int32),
      prompt=prompt,
      prompt_mask=np.ones(prompt.shape, bool),
      responses=responses,
      response_mask=np.ones(responses.shape, bool),
      reference_logps=np.full((_BATCH, 2), -150.0, np.float32),
      weight=np.ones(_BATCH, np.float32),
    ),
  )


def main(argv) -> None:
  del argv
  rows = []
  print(
    f"{'users':>10}  {'model':<20}{'ms a step':>10}{'ratio':>8}{'held, MB':>10}"
    f"{'temporary, MB':>15}"
  )
  least = min(_USERS.value)
  for name, (kind, sparse) in _MODELS.items():
    for num_users in _USERS.value:
      # The shortest table beside each, so that the ratio is of one time.
      timed = {n: make(kind, sparse, n) for n in {least, num_users}}
      for repeat in range(_REPEATS.value + 3):
        for n, each in timed.items():
          each.run(batch_of(repeat, n))
      medians = {n: statistics.median(t.seconds[3:]) for n, t in timed.items()}
      own = timed[num_users]
      row = {
        "users": num_users,
        "model": name,
        "milliseconds": 1000 * medians[num_users],
        "ratio": medians[num_users] / medians[least],
        "held_bytes": own.held,
        "temporary_bytes": own.temporary,
      }
      rows.append(row)
      print(
        f"{num_users:>10,}  {name:<20}{row['milliseconds']:>10.1f}"
        f"{row['ratio']:>8.2f}{own.held / 1e6:>10,.0f}"
        f"{own.temporary / 1e6:>15,.1f}"
      )
      del timed, own
  file = pathlib.Path(__file__).with_suffix(".json")
  found = {"versions": run_folder.versions(), "rows": rows}
  file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  app.run(main)
