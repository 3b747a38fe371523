"""TRL's DPO as a contender of `benchmarks.training_gpu`; see there.

Imports nothing of JAX, so that the peers may have a Python of their own.
"""

import json
import statistics
import sys
import tempfile
import time
import warnings

import datasets
import numpy as np
import peft
import tokenizers
import torch
import transformers
import trl
from trl.trainer import dpo_trainer

_LLAMA_3_8B = {
  "vocab_size": 128256,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
}
_TINY = {
  "vocab_size": 101,
  "hidden_size": 32,
  "intermediate_size": 52,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
}
_PRESETS = {"llama-3-8b": _LLAMA_3_8B, "llama-tiny": _TINY}


class Trainer(trl.DPOTrainer):
  """TRL's, for comparisons that are token ids already.

  Reference log-probabilities are the same for all: the step reads them, and
  what they are does not matter to what it costs.
  """

  def _prepare_dataset(self, dataset, *args, **kwargs):
    return dataset

  def _precompute_ref_logps(self, dataset, *args, **kwargs):
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
      dataset = dataset.add_column(name, [-3000.0] * len(dataset))
    return dataset


class Clock(transformers.TrainerCallback):
  """Seconds of each step."""

  def __init__(self):
    self.seconds = []
    self._start = 0.0

  def on_step_begin(self, args, state, control, **kwargs):
    _synchronize()
    self._start = time.perf_counter()

  def on_step_end(self, args, state, control, **kwargs):
    _synchronize()
    self.seconds.append(time.perf_counter() - self._start)


def _synchronize() -> None:
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def random_model(preset: str):
  """Of random weights in bfloat16, made where they lie."""
  config = transformers.LlamaConfig(**_PRESETS[preset])
  torch.set_default_dtype(torch.bfloat16)
  with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model = transformers.LlamaForCausalLM(config)
  torch.set_default_dtype(torch.float32)
  return model


def pairs(spec, vocab_size: int) -> datasets.Dataset:
  """Every pair of every example, twice: what both branches would read."""
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(int(spec["samples"])):
    prompt = rng.integers(3, vocab_size, spec["prompt"]).tolist()
    responses = rng.integers(3, vocab_size, (spec["responses"], spec["size"]))
    rows += [
      {
        "prompt_ids": prompt,
        "chosen_ids": responses[0].tolist(),
        "rejected_ids": rejected.tolist(),
      }
      for rejected in responses[1:]
    ]
  return datasets.Dataset.from_list(rows * 2)


def any_tokenizer():
  """TRL wants one; the comparisons are token ids already."""
  words = tokenizers.models.WordLevel({"<e>": 0, "<u>": 1}, unk_token="<u>")
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words),
    eos_token="<e>",
    pad_token="<e>",
    unk_token="<u>",
  )


def main() -> None:
  warnings.simplefilter("ignore")
  spec = json.loads(sys.argv[1])
  cuda = torch.cuda.is_available()
  # It names a cache that is not used here, and takes a minute for 16 GB.
  dpo_trainer.hash_module = lambda module: "random"
  at_once = int(spec.get("pairs", 2))
  model = random_model(spec["preset"])
  dataset = pairs(spec, model.config.vocab_size)
  clock = Clock()
  with tempfile.TemporaryDirectory() as folder:
    args = trl.DPOConfig(
      output_dir=folder,
      per_device_train_batch_size=at_once,
      gradient_accumulation_steps=len(dataset) // at_once,
      precompute_ref_log_probs=True,
      gradient_checkpointing=bool(int(spec.get("checkpointing", 1))),
      bf16=cuda,
      use_cpu=not cuda,
      max_steps=2 + spec["repeats"],
      max_length=None,
      beta=0.1,
      report_to=[],
      save_strategy="no",
      logging_strategy="no",
      disable_tqdm=True,
    )
    trainer = Trainer(
      model,
      args=args,
      train_dataset=dataset,
      processing_class=any_tokenizer(),
      peft_config=peft.LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules="all-linear",
      ),
      callbacks=[clock],
    )
    trainer.train()
  print(
    json.dumps(
      {
        "seconds": statistics.median(clock.seconds[2:]),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {
          each.__name__: each.__version__
          for each in (torch, trl, transformers, peft)
        },
      }
    )
  )


if __name__ == "__main__":
  main()
