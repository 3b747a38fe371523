"""This package's decoding as a contender of `benchmarks.generation`."""

import json
import sys
import time

import numpy as np

from benchmarks import side_by_side, static_batch
from pdpo_jax.runs import run_folder


def main() -> None:
  turns = side_by_side.Turns()
  spec = json.loads(sys.argv[1])
  arrays = np.load(spec["requests"])
  policy = static_batch.read_policy(
    spec["weights"], arrays["prefixes"], spec["dtype"]
  )
  answer = static_batch.static_batch(policy, arrays, spec["new_tokens"])

  start = time.perf_counter()
  answer()
  turns.ready(
    versions=run_folder.versions(), first_seconds=time.perf_counter() - start
  )
  while True:
    turns.wait()
    found = answer()
    turns.report(tokens=found)


if __name__ == "__main__":
  main()
