r"""Our server beside those of vLLM, llama.cpp and transformers, on a CPU.

  python -m pdpo_jax.main --config=configs/smollm2.py \
    --config.base.dtype=float32 --config.base.param_dtype=float32 \
    --config.data.path=choices.jsonl
  python -m benchmarks.serving_peers --workdir=runs/smollm2-individual \
    --peer_python=.venv-engines/bin/python

Each serves the same run, the others as an export in which people are tokens
(docs/export.md), by OpenAI's protocol. 16 people at a time ask for as many
greedy tokens all at once, and then at random moments (Poisson). The servers
have the machine to themselves, one after another. CPU seconds are those of all
of a server's processes. Peers need what `make engines` installs. Linux alone.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import generation_prompts
from pdpo_jax import command_line
from pdpo_jax.runs import run as run_lib

_WORKDIR = command_line.workdir_flag()
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", sys.executable, "The Python that has the peers."
)
_SERVERS = flags.DEFINE_multi_enum(
  "servers",
  ["ours", "vllm", "llama.cpp", "transformers"],
  ["ours", "vllm", "llama.cpp", "transformers", "transformers-batching"],
  "Who serves; transformers with continuous batching where it says so.",
)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Of an answer.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Times that all ask at once.")
_PER_SECOND = flags.DEFINE_float("per_second", 1.0, "Who arrives, on average.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures there.")

_START_SECONDS = 900
_POSITIONS = 512
_LLAMA_CPP = """
import signal, sys, xllamacpp
folder, port, slots, positions = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = folder + "/model.gguf"
params.hostnames, params.port = ["127.0.0.1"], int(port)
params.use_jinja = True
params.n_parallel, params.n_ctx = int(slots), int(slots) * int(positions)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
signal.pause()
"""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What somebody was told, and seconds that they waited.

  Attributes:
    first: until anything of it was there.
    all: until the end.
  """

  text: str
  tokens: int
  first: float
  all: float


@dataclasses.dataclass(frozen=True)
class Server:
  """One that runs.

  Attributes:
    name: its model's.
    process: its number.
    people: ids, as its requests name them.
  """

  port: int
  name: str
  process: int
  people: Sequence[str]

  def ask(self, user_id: str, prompt: str) -> Answer:
    body = {
      "model": self.name,
      "user": user_id,
      "messages": [{"role": "user", "content": prompt, "name": user_id}],
      "temperature": 0,
      "max_tokens": _NEW_TOKENS.value,
      "stream": True,
      "stream_options": {"include_usage": True},
    }
    began, first = time.perf_counter(), None
    texts, tokens = [], 0
    for event in _events(self.port, body):
      tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
      for choice in event.get("choices", ()):
        text = choice["delta"].get("content")
        if text:
          first = first or time.perf_counter() - began
          texts.append(text)
    taken = time.perf_counter() - began
    if first is None:
      raise RuntimeError(f"{self.name} says nothing to {user_id}")
    return Answer("".join(texts), tokens or len(texts), first, taken)

  def cpu_seconds(self) -> float:
    """Of the server and of all that it started."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
      with contextlib.suppress(OSError):
        fields = file.read_text().rpartition(")")[2].split()
        process = int(file.parent.name)
        children.setdefault(int(fields[1]), []).append(process)
        ticks[process] = int(fields[11]) + int(fields[12])
    total, left = 0, [self.process]
    while left:
      process = left.pop()
      total += ticks.get(process, 0)
      left += children.get(process, ())
    return total / os.sysconf("SC_CLK_TCK")


def _events(port: int, body: dict) -> Iterator[dict[str, Any]]:
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
  try:
    headers = {"content-type": "application/json"}
    content = json.dumps(body).encode()
    connection.request("POST", "/v1/chat/completions", content, headers)
    answer = connection.getresponse()
    if answer.status != 200:
      raise RuntimeError(f"{answer.status}: {answer.read()[:500]!r}")
    for line in answer:
      data = line.decode().strip().removeprefix("data: ")
      if data and data != "[DONE]" and not data.startswith(":"):
        yield json.loads(data)
  finally:
    connection.close()


def command_of(name: str, folder: pathlib.Path, port: int) -> list[str]:
  """What starts a server; `folder` has the exports."""
  python, at = _PEER_PYTHON.value, ["--host=127.0.0.1", f"--port={port}"]
  slots = len(generation_prompts.PROMPTS)
  if name == "ours":
    ours = [sys.executable, "-m", "pdpo_jax.serve"]
    ours += [f"--workdir={_WORKDIR.value}", f"--port={port}"]
    return [*ours, f"--positions={_POSITIONS}"]
  if name == "vllm":
    vllm = [python, "-m", "vllm.entrypoints.openai.api_server", *at]
    vllm += ["--model", str(folder / "tokens"), "--dtype=float32"]
    return [*vllm, f"--max-num-seqs={slots}", f"--max-model-len={_POSITIONS}"]
  if name == "llama.cpp":
    llama = [python, "-c", _LLAMA_CPP, str(folder / "gguf"), str(port)]
    return [*llama, str(slots), str(_POSITIONS)]
  serve = [str(pathlib.Path(python).parent / "transformers"), "serve"]
  serve += [str(folder / "tokens"), *at, "--dtype=float32", "--device=cpu"]
  return serve + ["--continuous-batching"] * (name == "transformers-batching")


@contextlib.contextmanager
def serving(
  name: str, folder: pathlib.Path, people: Sequence[str]
) -> Iterator[Server]:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  log = folder / f"{name}.log"
  cores = f"0-{(os.cpu_count() or 1) - 1}"
  environment = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": cores,
    "HF_HUB_OFFLINE": "1",
  }
  with log.open("w") as out:
    process = subprocess.Popen(
      command_of(name, folder, port),
      env=os.environ | environment,
      stdout=out,
      stderr=out,
      start_new_session=True,
    )
  try:
    deadline = time.monotonic() + _START_SECONDS
    while (models := _models(port)) is None:
      if process.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError(f"{name}: {log.read_text()[-3000:]}")
      time.sleep(0.2)
    model = models[0]
    if name.startswith("transformers"):
      model = str(folder / "tokens")
    yield Server(port, model, process.pid, people)
  finally:
    process.terminate()
    try:
      process.wait(60)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _models(port: int) -> list[str] | None:
  """Names; None where nobody answers yet."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  try:
    connection.request("GET", "/v1/models")
    answer = connection.getresponse()
    told = json.loads(answer.read())
    if answer.status != 200:
      return None
    return [each["id"] for each in told["data"]] or ["none"]
  except (OSError, http.client.HTTPException, ValueError):
    return None
  finally:
    connection.close()


def together(
  server: Server, number: int, pauses: Sequence[float]
) -> tuple[list[Answer], float]:
  """Everybody asks, each so many seconds after who came before them.

  Args:
    number: of the time. Prompts differ from time to time, since some servers
      keep what they read.

  Returns:
    Answers in the order of the prompts, and seconds from first to last.
  """
  prompts = [f"{number}. {each}" for each in generation_prompts.PROMPTS]
  answers: list[Answer | None] = [None] * len(prompts)

  def ask(place):
    user_id = server.people[place % len(server.people)]
    answers[place] = server.ask(user_id, prompts[place])

  threads = [
    threading.Thread(target=ask, args=(place,)) for place in range(len(prompts))
  ]
  began = time.perf_counter()
  for thread, pause in zip(threads, pauses, strict=True):
    time.sleep(pause)
    thread.start()
  for thread in threads:
    thread.join()
  taken = time.perf_counter() - began
  found = [each for each in answers if each is not None]
  if len(found) < len(prompts):
    raise RuntimeError(f"{server.name} did not answer everybody")
  return found, taken


def settle(server: Server) -> None:
  """Waits until whatever was begun at the start is done."""
  used = server.cpu_seconds()
  while True:
    time.sleep(3)
    before, used = used, server.cpu_seconds()
    if used - before < 0.1:
      return


def measure(server: Server) -> dict[str, Any]:
  count = len(generation_prompts.PROMPTS)
  at_once = [0.0] * count
  together(server, 0, at_once)
  settle(server)
  turns = []
  for number in range(1, 1 + _REPEATS.value):
    before = server.cpu_seconds()
    answers, seconds = together(server, number, at_once)
    turns.append(
      {
        "seconds": seconds,
        "cpu_seconds": server.cpu_seconds() - before,
        "tokens": sum(each.tokens for each in answers),
        "tokens_per_second": sum(x.tokens for x in answers) / seconds,
        "first_p50": statistics.median(each.first for each in answers),
        "all_p50": statistics.median(each.all for each in answers),
      }
    )
  rng = np.random.default_rng(0)
  pauses = rng.exponential(1 / _PER_SECOND.value, count)
  arriving, _ = together(server, -1, pauses)
  result: dict[str, Any] = {
    name: statistics.median(turn[name] for turn in turns) for name in turns[0]
  }
  for name, get in _WAITS.items():
    values = [get(each) for each in arriving]
    for percent in (50, 95):
      result[f"arriving_{name}_p{percent}"] = float(
        np.percentile(values, percent)
      )
  result["texts"] = [each.text for each in answers]
  return result


_WAITS: dict[str, Callable[[Answer], float]] = {
  "first": lambda answer: answer.first,
  "all": lambda answer: answer.all,
}
_COLUMNS = {
  "tokens_per_second": "tokens/s",
  "cpu_seconds": "CPU s",
  "first_p50": "first, p50",
  "all_p50": "all, p50",
  "arriving_first_p50": "arriving: first, p50",
  "arriving_first_p95": "p95",
  "arriving_all_p50": "all, p50",
  "arriving_all_p95": "p95",
}


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is missing, e.g. runs/smollm2-individual")
  run = run_lib.Run.open(_WORKDIR.value)
  people = list(run.own.table.ids)
  if run.config.base.dtype != "float32":
    print("The run's base is not in float32, as those of others are here.")
  found: dict[str, dict[str, Any]] = {}
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    for form in ("tokens", "gguf"):
      export = [sys.executable, "-m", "pdpo_jax.export", f"--format={form}"]
      export += [f"--workdir={_WORKDIR.value}", f"--output={folder / form}"]
      subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    print(f"| | {' | '.join(_COLUMNS.values())} | same answers |")
    print(f"|{'---|' * (len(_COLUMNS) + 2)}")
    for name in _SERVERS.value:
      with serving(name, folder, people) as server:
        found[name] = measure(server)
      first = next(iter(found.values()))["texts"]
      pairs = zip(found[name]["texts"], first, strict=True)
      same = sum(ours == theirs for ours, theirs in pairs)
      cells = [f"{found[name][column]:.2f}" for column in _COLUMNS]
      print(f"| {name} | {' | '.join(cells)} | {same} |", flush=True)
  if _JSON.value:
    text = json.dumps(found, indent=2) + "\n"
    pathlib.Path(_JSON.value).write_text(text)


if __name__ == "__main__":
  command_line.run(main)
