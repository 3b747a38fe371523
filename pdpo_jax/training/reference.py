"""Reference log-probabilities, computed once and kept on disk.

The reference is the frozen base itself: no LoRA, no prefix, never a second
copy of the weights.
"""

import hashlib
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm
from flax import nnx

from pdpo_jax import structs
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import step as step_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


def _key(
  examples: Sequence[structs.TokenizedExample], base: base_lib.Base
) -> str:
  """Names the log-probabilities of these token ids under these weights."""
  digest = hashlib.sha256(f"{base.fingerprint} {base.lm.dtype}".encode())
  for example in examples:
    for ids in (example.prompt, *example.responses):
      digest.update(np.int64(ids.size).tobytes())
      digest.update(np.asarray(ids, np.int32).tobytes())
  return digest.hexdigest()[:16]


def reference_logps(
  base: base_lib.Base,
  examples: Sequence[structs.TokenizedExample],
  batches: batching.PreferenceBatches,
  folder: pathlib.Path,
  logits_chunk: int,
) -> np.ndarray:
  """`log ref(y | x)` of every response, float32 `[examples, N]`, in nats.

  Read from `folder` if these examples were computed there with this base.

  Args:
    batches: of `examples`; only their order and padding matter.
    folder: where the cache lies; made if it is missing.
    logits_chunk: as in `logprobs.response_logps`.
  """
  file = folder / f"{_key(examples, base)}.npy"
  most = max(len(example.responses) for example in examples)
  if file.exists():
    try:
      cached = np.load(file)
    except (ValueError, EOFError):
      logger.warning("%s is damaged and is computed again", file)
    else:
      if cached.shape == (len(examples), most):
        return cached
  graphdef, params = nnx.split(policy_lib.base_policy(base.lm))
  score = step_lib.make_score(graphdef, logits_chunk)
  logps = np.zeros((len(examples), most), np.float32)
  # Everyone is the generic user to a model without users.
  for batch in tqdm.tqdm(
    batches.in_order(), desc="reference", unit="batch", leave=False
  ):
    values = np.asarray(score(nnx.State({}), params, batch))
    real = batch.index >= 0
    logps[batch.index[real], : values.shape[1]] = values[real]
  folder.mkdir(parents=True, exist_ok=True)
  part = file.with_suffix(".part")
  with part.open("wb") as out:
    np.save(out, logps)
  part.replace(file)
  return logps
