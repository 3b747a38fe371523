"""Reference log-probabilities, computed once and kept on disk.

The reference is the frozen base itself: no LoRA, no prefix, never a second
copy of the weights.
"""

import hashlib
import logging
import pathlib
import time
from collections.abc import Sequence

import numpy as np
import tqdm

from pdpo_jax.core import kept, processes, structs
from pdpo_jax.data import batching
from pdpo_jax.training import scoring
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 60.0
# Of the SHA-256 that a file begins with.
_SUM_BYTES = 32


def _key(
  examples: Sequence[structs.TokenizedExample], base: base_lib.Base
) -> str:
  """Names the log-probabilities of these token ids under these weights."""
  weights = f"{base.fingerprint} {base.lm.arch} {base.lm.dtype}"
  digest = hashlib.sha256(weights.encode())
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
  title: str = "reference",
) -> np.ndarray:
  """`log ref(y | x)` of every response, float32 `[examples, N]`, in nats.

  Kept in `folder` under a name made of the examples' tokens and the base's
  weights, so that another run on both reads what this one computed, and one on
  others does not. What was computed is kept once a minute: when interrupted,
  the next call goes on from there.

  Args:
    batches: of `examples`; only their order and padding matter.
    folder: where the cache lies; made if it is missing.
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
    title: of the progress bar.

  Raises:
    kept.Unwritable: if the cache cannot be written.
    ValueError: if a log-probability is not finite.
  """
  file = folder / f"{_key(examples, base)}.logps"
  most = max(len(example.responses) for example in examples)
  # Of the first process's cache; hosts need not share one.
  logps = processes.from_first(lambda: _read(file, (len(examples), most)))
  missing = np.isnan(logps).any(1)
  if not missing.any():
    return logps
  wanted = (
    batch
    for batch in tqdm.tqdm(
      batches.in_order(),
      total=batches.num_batches,
      desc=title,
      unit="batch",
      leave=False,
      disable=not processes.is_first(),
    )
    if missing[batch.examples[batch.examples >= 0]].any()
  )
  saved = time.monotonic()
  for batch, values in scoring.score_batches(
    scoring.of_base(base), wanted, logits_chunk
  ):
    rows = np.unique(batch.examples[batch.examples >= 0])
    logps[rows] = 0.0  # also where an example has fewer responses than others
    places = scoring.places(batch)
    logps[places.example, places.response] = values[places.row, places.column]
    if not np.isfinite(logps[rows]).all():
      raise ValueError(
        f"the base {base.fingerprint} gives log-probabilities that are not "
        f"finite, first among examples {rows[:5].tolist()}; check its weights, "
        "or use base.dtype='float32'"
      )
    if time.monotonic() - saved > _SAVE_SECONDS:
      _write(file, logps)
      saved = time.monotonic()
  _write(file, logps)
  return logps


def _read(file: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
  """What was kept; NaN where nothing was."""
  missing = np.full(shape, np.nan, np.float32)
  if not file.exists():
    return missing
  try:
    content = file.read_bytes()
  except OSError as error:
    problem = f"cannot be read ({error.strerror})"
  else:
    total, values = content[:_SUM_BYTES], content[_SUM_BYTES:]
    if total == _sum(file, values) and len(values) == missing.nbytes:
      return np.frombuffer(values, np.float32).reshape(shape).copy()
    problem = "is not what was written"
  logger.warning("%s %s and is computed again", file, problem)
  return missing


def _write(file: pathlib.Path, logps: np.ndarray) -> None:
  if processes.is_first():
    values = logps.tobytes()
    # Its sum is inside, since runs share the folder.
    with kept.writing(file, summed=False) as out:
      out.write(_sum(file, values) + values)


def _sum(file: pathlib.Path, values: bytes) -> bytes:
  """Of values under the name that they are kept by."""
  return hashlib.sha256(file.name.encode() + values).digest()
