"""Real engines answer as `generate` does, greedy and in float32.

`make engines` runs this; it takes some minutes.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from pdpo_jax.inference import prefixes as prefixes_lib
from pdpo_jax.inference import remote, requests
from tests.engines import people

# Threads wait for each other as soon as anything else runs.
torch.set_num_threads(1)

# Of other people's code.
pytestmark = pytest.mark.filterwarnings("default")
GREEDY = {"do_sample": False, "max_new_tokens": people.NEW_TOKENS}


def load(folder: pathlib.Path):
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert model.dtype == torch.float32
  return model


def prefixes(world):
  file = world.folder / "merged" / "users" / "prefixes.safetensors"
  return torch.tensor(safetensors.numpy.load_file(file)["prefixes"])


def embeddings(world, model, prompt):
  """Of a prompt behind each person's prefix, `[U, T + P, D]`."""
  ids = torch.tensor([world.prompt(prompt)] * len(world.contents.ids))
  tokens = model.get_input_embeddings()(ids)
  return torch.cat([prefixes(world), tokens], 1)


@torch.no_grad()
def answers_by_embeddings(world, model):
  answers = {}
  for prompt in people.PROMPTS:
    inputs = embeddings(world, model, prompt)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long)
    made = model.generate(inputs_embeds=inputs, attention_mask=mask, **GREEDY)
    for user_id, ids in zip(world.contents.ids, made, strict=True):
      answers[user_id, prompt] = world.without_end(ids)
  return answers


def messages(user_id, prompt):
  named = {} if user_id is None else {"name": user_id}
  return [{"role": "user", "content": prompt, **named}]


def test_people_differ(world):
  said = {(prompt, *ids) for (_, prompt), ids in world.answers.items()}
  assert len(said) > len(world.answers) / 2


def test_merged_in_transformers(world, compare):
  model = load(world.folder / "merged")
  compare("transformers, merged", answers_by_embeddings(world, model))


def test_merged_by_the_code_of_the_card(world, monkeypatch):
  monkeypatch.chdir(world.folder / "merged")
  card = pathlib.Path("README.md").read_text()
  (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
  scope = {}
  exec(code, scope)
  for user_id in world.contents.ids[:3]:
    text = scope["answer"](people.PROMPTS[0], user_id, **GREEDY)
    ids = world.answers[user_id, people.PROMPTS[0]]
    assert text == world.contents.tokenizer.decode(ids)


def test_lora_in_peft(world, compare):
  import peft

  folder = world.folder / "peft"
  model = peft.PeftModel.from_pretrained(load(folder / "base"), folder / "lora")
  compare("PEFT, LoRA beside the base", answers_by_embeddings(world, model))


def test_lora_and_prompts_by_the_code_of_the_card(world, compare, monkeypatch):
  monkeypatch.chdir(world.folder / "peft")
  card = pathlib.Path("README.md").read_text()
  (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
  scope = {}
  exec(code, scope)
  tokenizer, answers = world.contents.tokenizer, {}
  # One prompt each, as the card answers one after the other.
  for place, user_id in enumerate(world.contents.ids):
    prompt = people.PROMPTS[place % len(people.PROMPTS)]
    text = scope["answer"](prompt, user_id, **GREEDY)
    # Other ids may be the same text.
    ids = world.answers[user_id, prompt]
    same = text == tokenizer.decode(ids)
    answers[user_id, prompt] = ids if same else tokenizer(text).input_ids
  compare("PEFT, LoRA and prompts by the card", answers)


@torch.no_grad()
def test_tokens_in_transformers(world, compare):
  folder = world.folder / "tokens"
  model = load(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  answers = {}
  for prompt in people.PROMPTS:
    inputs = tokenizer.apply_chat_template(
      [messages(user_id, prompt) for user_id in world.contents.ids],
      add_generation_prompt=True,
      return_tensors="pt",
      return_dict=True,
    )
    made = model.generate(**inputs, **GREEDY)
    made = made[:, inputs["input_ids"].shape[1] :]
    for user_id, ids in zip(world.contents.ids, made, strict=True):
      answers[user_id, prompt] = world.without_end(ids)
  compare("transformers, tokens", answers)


def post(url: str, body: dict) -> dict:
  request = urllib.request.Request(
    url,
    json.dumps(body).encode(),
    {"Content-Type": "application/json"},
  )
  with urllib.request.urlopen(request, timeout=600) as answer:
    return json.load(answer)


@pytest.fixture(scope="module")
def llama_cpp(world):
  import xllamacpp

  params = xllamacpp.CommonParams()
  params.model.path = str(world.folder / "gguf" / "model.gguf")
  params.use_jinja = True
  params.n_ctx, params.n_parallel = 2048, 1
  params.cpuparams.n_threads = 1
  params.warmup = False
  server = xllamacpp.Server(params)
  yield server.listening_address
  del server


def test_tokens_in_llama_cpp(world, compare, llama_cpp):
  answers = {}
  for user_id, prompt in world.answers:
    asked = {"messages": messages(user_id, prompt)}
    text = post(f"{llama_cpp}/apply-template", asked)["prompt"]
    reply = post(
      f"{llama_cpp}/completion",
      {
        "prompt": text,
        "temperature": 0,
        "n_predict": people.NEW_TOKENS,
        "return_tokens": True,
      },
    )
    answers[user_id, prompt] = world.without_end(reply["tokens"])
  compare("llama.cpp, tokens in GGUF", answers)


def test_who_asks_by_chat_in_llama_cpp(world, llama_cpp):
  user_id, prompt = world.contents.ids[2], people.PROMPTS[0]
  for fields in (
    {"messages": messages(user_id, prompt)},
    {
      "messages": messages("somebody else", prompt),
      "chat_template_kwargs": {"user": user_id},
    },
  ):
    reply = post(
      f"{llama_cpp}/v1/chat/completions",
      {
        "temperature": 0,
        "max_tokens": people.NEW_TOKENS,
        **fields,
      },
    )
    text = reply["choices"][0]["message"]["content"]
    ids = world.answers[user_id, prompt]
    assert text == world.contents.tokenizer.decode(ids)


VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}


def ask_vllm(world, tmp_path, folder: str, **asked) -> people.Answers:
  """Answers of vLLM, which has a process of its own."""
  pytest.importorskip("vllm", reason="vLLM is not installed here")
  request, reply = tmp_path / "request.json", tmp_path / "reply.json"
  request.write_text(json.dumps(asked))
  script = pathlib.Path(__file__).parent / "ask_vllm.py"
  subprocess.run(
    [sys.executable, script, world.folder / folder, request, reply],
    check=True,
    env=os.environ | VLLM_ON_CPU,
    cwd=tmp_path,
  )
  made = json.loads(reply.read_text())
  return {
    asked: world.without_end(ids)
    for asked, ids in zip(world.answers, made, strict=True)
  }


def test_merged_in_vllm_by_embeddings(world, compare, tmp_path):
  model = load(world.folder / "merged")
  inputs = {}
  for prompt in people.PROMPTS:
    made = embeddings(world, model, prompt).detach().numpy()
    for user_id, each in zip(world.contents.ids, made, strict=True):
      inputs[user_id, prompt] = each
  file = tmp_path / "embeddings.safetensors"
  safetensors.numpy.save_file(
    {str(n): np.array(inputs[x]) for n, x in enumerate(world.answers)}, file
  )
  answers = ask_vllm(world, tmp_path, "merged", embeddings=str(file))
  compare("vLLM, merged by embeddings", answers)


def test_tokens_in_vllm(world, compare, tmp_path):
  chats = [messages(*asked) for asked in world.answers]
  answers = ask_vllm(world, tmp_path, "tokens", chats=chats)
  compare("vLLM, tokens", answers)


@pytest.fixture(scope="module")
def vllm_server(world, tmp_path_factory):
  pytest.importorskip("vllm", reason="vLLM is not installed here")
  folder = tmp_path_factory.mktemp("vllm")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
  command += ["--model", str(world.folder / "merged"), "--dtype", "float32"]
  command += ["--enforce-eager", "--enable-prompt-embeds", "--max-num-seqs=16"]
  command += ["--max-model-len=512", "--host=127.0.0.1", f"--port={port}"]
  with (folder / "log").open("w") as log:
    server = subprocess.Popen(
      command,
      env=os.environ | VLLM_ON_CPU,
      cwd=folder,
      stdout=log,
      stderr=subprocess.STDOUT,
    )
  url = f"http://127.0.0.1:{port}"
  try:
    end = time.monotonic() + 600
    while not _is_up(f"{url}/health"):
      assert server.poll() is None and time.monotonic() < end, (
        folder / "log"
      ).read_text()[-3000:]
      time.sleep(1)
    yield url
  finally:
    server.terminate()
    server.wait(60)


def _is_up(url: str) -> bool:
  try:
    with urllib.request.urlopen(url, timeout=5):
      return True
  except OSError:
    return False


@contextlib.contextmanager
def behind_vllm(world, url, **settings):
  contents = world.contents
  sizes = {"slots": 8, "queue": 10_000, "positions": 512} | settings
  with remote.RemoteEngine(
    url, contents.policy, stop_tokens=contents.stop_tokens, **sizes
  ) as engine:
    yield engine


def test_vllm_behind_our_server(world, compare, vllm_server):
  streams = {}
  with behind_vllm(world, vllm_server) as engine:
    for user_id, prompt in world.answers:
      row = world.contents.users.row_of(user_id)
      prefix = prefixes_lib.of_row(world.contents.policy, row)
      streams[user_id, prompt] = engine.submit(
        requests.Request(world.prompt(prompt), prefix, people.NEW_TOKENS)
      )
    answers = {
      asked: [token.id for token in stream] for asked, stream in streams.items()
    }
  compare("vLLM behind our server", answers)


def test_vllm_tells_log_probabilities_and_leaves_whom_nobody_reads(
  world, vllm_server
):
  ids = world.prompt(people.PROMPTS[1])
  prefix = prefixes_lib.of_row(world.contents.policy, 0)
  request = requests.Request(ids, prefix, 8, top_logprobs=3)
  with behind_vllm(world, vllm_server) as engine:
    tokens = [*engine.submit(request)]
    long = dataclasses.replace(request, max_new_tokens=400)
    stream = engine.submit(long)
    next(stream)
    stream.cancel()
    begun = time.monotonic()
    while engine.status().running:
      assert time.monotonic() < begun + 20
      time.sleep(0.05)
  assert len(tokens) == 8
  for token in tokens:
    assert len(token.top) == 3 and token.top[0] == (token.id, token.logprob)
    values = [value for _, value in token.top]
    assert values == sorted(values, reverse=True)


def test_another_model_behind_our_server_is_an_error(world, vllm_server):
  other = people.make_policy(world.contents.base, seed=1)
  with pytest.raises(ValueError, match="another model than the run's"):
    remote.RemoteEngine(
      vllm_server, other, stop_tokens=world.contents.stop_tokens, positions=512
    )
