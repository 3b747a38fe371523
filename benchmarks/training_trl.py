"""TRL's DPO as a contender of `benchmarks.training`; see there.

Imports nothing of JAX, so that the peers may have a Python of their own.
"""

import json
import sys
import tempfile
import warnings

import datasets
import peft
import torch
import transformers
import trl

from benchmarks import comparisons, side_by_side


class Trainer(trl.DPOTrainer):
  """TRL's, for comparisons that are token ids already."""

  def _prepare_dataset(self, dataset, *args, **kwargs):
    return dataset


class StepByStep(transformers.TrainerCallback):
  """Does a step when it is this contender's turn."""

  def __init__(self, turns):
    self._turns = turns

  def on_step_begin(self, args, state, control, **kwargs):
    self._turns.wait()

  def on_step_end(self, args, state, control, **kwargs):
    self._turns.report()


def pairs(file: str) -> datasets.Dataset:
  """Every pair of every example, twice: what both branches would read.

  A row has as many tokens as one of ours, with tokens in the prefix's place.
  """
  rows = [
    {
      "prompt_ids": prompt.tolist(),
      "chosen_ids": chosen.tolist(),
      "rejected_ids": other.tolist(),
    }
    for _, prompt, (chosen, *rejected) in comparisons.read(file)
    for other in rejected
  ]
  return datasets.Dataset.from_list(rows * 2)


def main() -> None:
  turns = side_by_side.Turns()
  warnings.simplefilter("ignore")
  spec = json.loads(sys.argv[1])
  torch.set_num_threads(spec["threads"])
  dataset = pairs(spec["tokens"])
  with tempfile.TemporaryDirectory() as folder:
    args = trl.DPOConfig(
      output_dir=folder,
      per_device_train_batch_size=spec["pairs_at_once"],
      gradient_accumulation_steps=len(dataset) // spec["pairs_at_once"],
      precompute_ref_log_probs=True,
      precompute_ref_batch_size=1,
      gradient_checkpointing=False,
      bf16=False,
      use_cpu=True,
      max_steps=10_000,
      max_length=None,
      beta=0.1,
      learning_rate=5e-5,
      report_to=[],
      save_strategy="no",
      logging_strategy="no",
      disable_tqdm=True,
      dataloader_pin_memory=False,
    )
    trainer = Trainer(
      transformers.AutoModelForCausalLM.from_pretrained(
        spec["weights"], dtype=getattr(torch, spec["dtype"])
      ),
      args=args,
      train_dataset=dataset,
      processing_class=transformers.AutoTokenizer.from_pretrained(
        spec["weights"]
      ),
      peft_config=peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=spec["lora"]
      ),
      callbacks=[StepByStep(turns)],
    )
    reference = trainer.train_dataset[:]
    turns.ready(
      versions=side_by_side.versions("torch", "trl", "peft", "transformers"),
      reference=[
        reference[f"ref_{name}_logps"][0] for name in ("chosen", "rejected")
      ],
    )
    trainer.train()


if __name__ == "__main__":
  main()
