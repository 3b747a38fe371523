"""What a policy thinks of comparisons, without training on them."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import processes, structs
from pdpo_jax.data import batching
from pdpo_jax.training import (
  host_users,
  losses,
  policies,
  sharding,
)
from pdpo_jax.training import step as step_lib


def score_batches(
  policy: policies.SplitPolicy,
  batches: Iterable[structs.PreferenceBatch],
  logits_chunk: int,
) -> Iterator[tuple[structs.PreferenceBatch, Float[np.ndarray, "B N"]]]:
  """Each batch with the log-probabilities of its responses, in nats.

  Args:
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
  """
  mesh = sharding.mesh_of(policy.frozen)
  score = step_lib.make_score(
    policy.graphdef, sharding.logits_chunk(logits_chunk, mesh)
  )
  place = sharding.batch_placer(mesh)
  for batch in batches:
    trainable, rows = host_users.narrow(policy.trainable, batch.user_row)
    placed = dataclasses.replace(place(batch), user_row=rows)
    yield batch, processes.fetch(score(trainable, policy.frozen, placed))


def heldout_ratios(
  policy: policies.SplitPolicy,
  batches: batching.PreferenceBatches,
  logits_chunk: int,
  length_normalized: bool = False,
) -> Float[np.ndarray, "examples M"]:
  """Log-ratio differences of each example's pairs, read as its own user.

  Args:
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
    length_normalized: as `objective.LossConfig.length_normalized`.

  Returns:
    `d(chosen) - d(rejected)` in nats; NaN where an example has no such pair.
  """
  ratios_of = {}
  for batch, logps in score_batches(policy, batches.in_order(), logits_chunk):
    ratios = losses.log_ratio_differences(
      logps,
      batch.reference_logps,
      batch.response_mask if length_normalized else None,
    )
    exists = batch.response_mask[:, 1:].any(-1)
    ratios = np.where(exists, ratios, np.nan)
    for row, index in enumerate(batch.index):
      if index >= 0:
        ratios_of[int(index)] = ratios[row]
  most = max(row.size for row in ratios_of.values())
  out = np.full((len(ratios_of), most), np.nan, np.float32)
  for index, row in ratios_of.items():
    out[index, : row.size] = row
  return out
