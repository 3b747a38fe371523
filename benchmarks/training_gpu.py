r"""P-DPO's step on Llama-3-8B's shapes, beside TRL's, on a GPU.

  python -m benchmarks.training_gpu
  python -m benchmarks.training_gpu --ours=samples=8,remat=full \
    --ours=samples=4,remat=dots,kernels=int8 --trl=pairs=4,checkpointing=1

Weights are random, in bfloat16, with LoRA of rank 8 on every linear layer.
Examples are PRISM-like: 470 + 10 prompt tokens, two responses of 300; each goes
through twice, as its user's and as the generic user's. TRL gets rows of as many
tokens, and its reference log-probabilities beforehand, as ours are.

Each contender is a process that has the GPU for itself, so memory is the most
that its allocator held. Utilisation is of the GPU's peak (`--peak_tflops`, 989
for an H100 or H200 in bfloat16) by the operations that a step needs, whatever
more it does: see `benchmarks.work`. Needs torch, trl and peft in
`--peer_python`. Writes `benchmarks/training_gpu.json`.
"""

import json
import os
import subprocess
import sys
from typing import Any

from absl import app, flags

from benchmarks import side_by_side
from benchmarks import work as work_lib
from pdpo_jax.models import llama

PROMPT, RESPONSES, SIZE, PREFIX = 480, 2, 300, 10

_OURS = flags.DEFINE_multi_string(
  "ours",
  ["samples=6,remat=dots", "samples=8,remat=full"],
  "Settings of a run of ours: samples, remat, attention, kernels, preset.",
)
_TRL = flags.DEFINE_multi_string(
  "trl",
  ["pairs=4,checkpointing=1", "pairs=2,checkpointing=0"],
  "Settings of a run of TRL's: samples, pairs, checkpointing, preset.",
)
_REPEATS = flags.DEFINE_integer("repeats", 8, "Timed steps of each.")
_PEAK = flags.DEFINE_float("peak_tflops", 989.0, "The GPU's, in bfloat16.")
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", sys.executable, "The Python that has torch, trl and peft."
)
_TIMEOUT = flags.DEFINE_integer("timeout", 300, "Seconds for a contender.")


def settings(text: str) -> dict[str, str]:
  return dict(each.split("=") for each in text.split(",")) if text else {}


def run(python: str, module: str, spec: dict[str, Any]) -> dict[str, Any]:
  """What a contender says at its end; why not, if it does not get there."""
  environment = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # JAX takes three quarters of a GPU unless it is told.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
  }
  try:
    done = subprocess.run(
      [python, "-m", module, json.dumps(spec)],
      capture_output=True,
      text=True,
      timeout=_TIMEOUT.value,
      env=environment,
    )
  except subprocess.TimeoutExpired:
    return {"failed": f"not done in {_TIMEOUT.value} s"}
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ["no message"]
    said = [line for line in lines if "Error" in line or "EXHAUSTED" in line]
    return {"failed": (said or lines)[-1][:300]}
  return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv) -> None:
  del argv
  common = {
    "prompt": PROMPT,
    "responses": RESPONSES,
    "size": SIZE,
    "prefix": PREFIX,
    "samples": 4,
    "preset": "llama-3-8b",
    "repeats": _REPEATS.value,
  }
  rows = []
  for name, python, texts in (
    ("ours", sys.executable, _OURS.value),
    ("trl", _PEER_PYTHON.value, _TRL.value),
  ):
    module = {"ours": "training_gpu_jax", "trl": "training_gpu_trl"}[name]
    for text in texts:
      spec = common | settings(text)
      found = run(python, f"benchmarks.{module}", spec)
      row = {"contender": name, "settings": text} | found
      if "seconds" in found:
        arch = llama.PRESETS[spec["preset"]]
        work = work_lib.least_work(arch, PROMPT, RESPONSES, SIZE, 8)
        row["samples_per_second"] = int(spec["samples"]) / found["seconds"]
        rate = work.total * row["samples_per_second"]
        row["utilisation"] = rate / _PEAK.value / 1e12
      rows.append(row)
      print(json.dumps(row), flush=True)
  print(describe(rows))
  side_by_side.write(__file__, {"rows": rows})


def describe(rows: list[dict[str, Any]]) -> str:
  lines = []
  for row in rows:
    name = f"{row['contender']} {row['settings']}"
    if "failed" in row:
      lines.append((name, "-", "-", "-", "-", "-"))
      continue
    lines.append(
      (
        name,
        f"{1000 * row['seconds']:.0f}",
        f"{row['samples_per_second']:.2f}",
        f"{row['utilisation']:.1%}",
        f"{row['peak_bytes'] / 1e9:.1f}",
        f"{row.get('compile_seconds', 0):.0f}",
      )
    )
  return side_by_side.table(
    ("", "ms a step", "examples/s", "utilisation", "peak GB", "compile s"),
    lines,
  )


if __name__ == "__main__":
  app.run(main)
