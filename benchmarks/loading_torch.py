"""`transformers.from_pretrained` for `benchmarks.loading`."""

import pathlib
import time

import torch
import transformers

from benchmarks import side_by_side


def measure(folder: pathlib.Path, param_dtype: str) -> dict[str, float]:
  """Loads a checkpoint in this process, which should be a fresh one."""
  torch.zeros(1)
  # Found on first use, which is not part of loading.
  _ = transformers.LlamaForCausalLM
  before = side_by_side.resident("VmRSS")
  start, cpu_start = time.perf_counter(), time.process_time()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=getattr(torch, param_dtype)
  )
  params = list(model.parameters())
  for tensor in params:
    side_by_side.look_at(tensor.detach().view(torch.uint8).numpy())
  seconds = time.perf_counter() - start
  cpu_seconds = time.process_time() - cpu_start
  loaded = sum(tensor.nbytes for tensor in params)
  return {
    "loaded arrays": loaded,
    "peak besides them": side_by_side.resident("VmHWM") - before - loaded,
    "seconds": seconds,
    "CPU seconds": cpu_seconds,
  }
