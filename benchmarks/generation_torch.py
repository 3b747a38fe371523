"""`transformers.generate` as a contender of `benchmarks.generation`."""

import json
import sys
import time

import numpy as np
import torch
import transformers

from benchmarks import side_by_side


def main() -> None:
  turns = side_by_side.Turns()
  spec = json.loads(sys.argv[1])
  torch.set_num_threads(spec["threads"])
  arrays = np.load(spec["requests"])
  dtype = getattr(torch, spec["dtype"])
  model = transformers.AutoModelForCausalLM.from_pretrained(
    spec["weights"], dtype=dtype
  )
  prefixes = torch.tensor(arrays["prefixes"]).to(dtype)
  rows, tokens, width = prefixes.shape

  @torch.inference_mode()
  def answer():
    embeddings = model.get_input_embeddings()(torch.tensor(arrays["prompt"]))
    inputs, mask = [], []
    for row in range(rows):
      # Padding, then prefix, then prompt.
      real = torch.tensor(arrays["mask"][row])
      padding = torch.zeros((int((~real).sum()), width), dtype=dtype)
      inputs.append(torch.cat([padding, prefixes[row], embeddings[row][real]]))
      mask.append(
        torch.cat([real[~real], torch.ones(tokens).bool(), real[real]])
      )
    found = model.generate(
      inputs_embeds=torch.stack(inputs),
      attention_mask=torch.stack(mask).long(),
      do_sample=False,
      min_new_tokens=spec["new_tokens"],
      max_new_tokens=spec["new_tokens"],
      pad_token_id=0,
    )
    return found.tolist()

  start = time.perf_counter()
  answer()
  turns.ready(
    versions=side_by_side.versions("torch", "transformers"),
    first_seconds=time.perf_counter() - start,
  )
  while True:
    turns.wait()
    found = answer()
    turns.report(tokens=found)


if __name__ == "__main__":
  main()
