"""Answers requests by vLLM: ask_vllm.py MODEL REQUEST REPLY.

A script with a process of its own, as vLLM starts others and keeps threads.
"""

import json
import pathlib
import sys

import vllm
from safetensors import torch as safetensors_torch

NEW_TOKENS = 40


def main() -> None:
  folder, request, reply = map(pathlib.Path, sys.argv[1:])
  asked = json.loads(request.read_text())
  llm = vllm.LLM(
    str(folder),
    dtype="float32",
    enforce_eager=True,
    enable_prompt_embeds="embeddings" in asked,
    max_model_len=512,
    max_num_seqs=16,
  )
  sampling = vllm.SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
  if "embeddings" in asked:
    tensors = safetensors_torch.load_file(asked["embeddings"])
    prompts = [
      {"prompt_embeds": tensors[str(number)]} for number in range(len(tensors))
    ]
    made = llm.generate(prompts, sampling)
  else:
    made = llm.chat(asked["chats"], sampling)
  answers = [list(each.outputs[0].token_ids) for each in made]
  reply.write_text(json.dumps(answers))


if __name__ == "__main__":
  main()
