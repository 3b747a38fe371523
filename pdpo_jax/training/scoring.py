"""What a policy thinks of comparisons that it is not trained on."""

import dataclasses
import logging

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import processes
from pdpo_jax.data import batching
from pdpo_jax.training import (
  host_users,
  losses,
  policies,
  sharding,
)
from pdpo_jax.training import step as step_lib

logger = logging.getLogger(__name__)


def heldout_ratios(
  split: policies.SplitPolicy,
  batches: batching.PreferenceBatches,
  logits_chunk: int,
  length_normalized: bool = False,
) -> Float[np.ndarray, "examples M"]:
  """Log-ratio differences of each sample's pairs, read as its own user.

  Args:
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
    length_normalized: as `objective.LossConfig.length_normalized`.

  Returns:
    `d(chosen) - d(rejected)` in nats; NaN where a sample has no such pair.
  """
  mesh = sharding.mesh_of(split.frozen)
  score = step_lib.make_score(
    split.graphdef, sharding.logits_chunk(logits_chunk, mesh)
  )
  place = sharding.batch_placer(mesh)
  found = {}
  for batch in batches.in_order():
    trainable, rows = host_users.narrow(split.trainable, batch.user_row)
    placed = dataclasses.replace(place(batch), user_row=rows)
    logps = processes.fetch(score(trainable, split.frozen, placed))
    ratios = losses.log_ratio_differences(
      logps,
      batch.reference_logps,
      batch.response_mask if length_normalized else None,
    )
    exists = batch.response_mask[:, 1:].any(-1)
    ratios = np.where(exists, ratios, np.nan)
    for row, index in enumerate(batch.index):
      if index >= 0:
        found[int(index)] = ratios[row]
  most = max(row.size for row in found.values())
  out = np.full((len(found), most), np.nan, np.float32)
  for index, row in found.items():
    out[index, : row.size] = row
  return out
