"""Small bases as folders, and odd values for the fields of their JSON files.

  python -m tests.weights.odd_bases --seed=0 --count=300

changes files of bases at random, and reads each base without its weights. Every
change has to be an error that names the file, or to leave all as it was.
"""

import argparse
import collections
import copy
import functools
import json
import pathlib
import random
import shutil
import sys
import tempfile
import traceback

from pdpo_jax.data import tokenize
from pdpo_jax.models import gptj, llama
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import hf_safetensors, vocabulary
from tests.weights import models

ODD = (
  None, True, False, 0, -1, 1, 3, 10**6, 10**12, 10**40, 0.5, -0.0, 1e400,
  float("nan"), "", "1", "64", "x" * 300, "../../etc/passwd", [], [64], [[]],
  {}, {"a": 1}, {"rope_type": "yarn"}, [None], [{"name": 1}], {"content": []},
)  # fmt: skip
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@functools.cache
def tokenizer():
  made = tokenize.train_tokenizer(["a few words of text"] * 3, 300)
  made.chat_template = CHAT
  return made


@functools.cache
def _base(kind: str) -> base_lib.Base:
  size = len(tokenizer())
  arch = {
    "gptj": gptj.Architecture(size, 8, 1, 2, 12, 4, max_positions=64),
    "llama": llama.Architecture(size, 8, 1, 2, 1, 4, 12, tied_head=True),
    "llama_untied": llama.Architecture(size, 8, 1, 2, 1, 4, 12),
  }[kind]
  return base_lib.Base(models.make(arch), tokenizer(), "")


@functools.cache
def _written(kind: str, sharded: bool) -> pathlib.Path:
  folder = pathlib.Path(tempfile.mkdtemp(prefix="odd_bases_"))
  base = _base(kind)
  base_lib.write_base(folder, base)
  if sharded:
    (folder / "model.safetensors").unlink()
    hf_safetensors.write_model(folder, base.lm, shard_bytes=5_000)
  return folder


def write(
  folder: pathlib.Path, kind: str = "llama", sharded: bool = False
) -> pathlib.Path:
  """A base of its own in `folder`, which is made."""
  shutil.copytree(_written(kind, sharded), folder)
  return folder


def fields(file: pathlib.Path) -> dict:
  return json.loads(file.read_text())


def change(file: pathlib.Path, **changed) -> None:
  """Sets fields of a JSON file."""
  file.write_text(json.dumps(fields(file) | changed))


def state(folder: pathlib.Path) -> tuple:
  """All that a base is, but the values of its weights."""
  source = base_lib._open(folder, str(folder))
  arch, places = source.load.args
  stops = (source.tokenizer.eos_token_id, *source.end_of_turn)
  shapes = sorted((name, place.shape) for name, place in places.items())
  return arch, shapes, vocabulary.fingerprint(source.tokenizer, stops)


def outcome(folder: pathlib.Path, before: tuple) -> str:
  """What became of a changed base: 'refused', 'the same', or a fault."""
  try:
    after = state(folder)
  except ValueError as error:
    text = str(error)
    if str(folder) not in text:
      return f"error without file: {text[:200]}"
    return "refused" if len(text) < 2_000 else f"long error: {text[:200]}"
  except Exception:
    return f"traceback: {traceback.format_exc()[-600:]}"
  return "the same" if after == before else "accepted as another base"


def _mutate(rng: random.Random, folder: pathlib.Path) -> str:
  """Changes a file of a base; returns what was done."""
  file = rng.choice(sorted(x for x in folder.iterdir() if x.is_file()))
  data = bytearray(file.read_bytes())
  kinds = ["flip", "cut", "empty", "type", "remove"]
  if file.suffix == ".json":
    kinds += ["field"] * 6
  kind = rng.choice(kinds)
  if kind == "flip":
    # Values of weights are what checkpoints and sums are for.
    limit = 2_000 if file.suffix == ".safetensors" else len(data)
    place = rng.randrange(min(limit, len(data)))
    data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
  elif kind == "cut":
    file.write_bytes(data[: rng.randrange(len(data))])
  elif kind == "empty":
    file.write_bytes(b"")
  elif kind == "type":
    text = rng.choice(["[]", "3", "null", '"x"', "{}", "[" * 100_000, "\ufeff"])
    file.write_text(text)
  elif kind == "remove":
    file.unlink()
  else:
    root = json.loads(data)
    holder = root
    while True:
      places = list(holder) if isinstance(holder, dict) else range(len(holder))
      place = rng.choice(list(places))
      inner = holder[place]
      if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
        holder = inner
        continue
      break
    holder[place] = copy.deepcopy(rng.choice(ODD))
    kind = f"field {place} = {holder[place]!r:.60}"
    file.write_text(json.dumps(root))
  return f"{file.name}: {kind}"


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m tests.weights.odd_bases")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--count", type=int, default=300)
  flags = parser.parse_args()
  rng = random.Random(flags.seed)
  counts = collections.Counter()
  with tempfile.TemporaryDirectory() as place:
    for number in range(flags.count):
      kind = rng.choice(("gptj", "llama", "llama_untied"))
      folder = write(
        pathlib.Path(place) / str(number), kind, rng.random() < 0.5
      )
      before = state(folder)
      done = _mutate(rng, folder)
      result = outcome(folder, before)
      if "traceback" in result or "error" in result:
        print(f"{kind} {done}\n  {result}")
      elif result == "accepted as another base":
        print(f"{kind} {done}: {result}")
      counts[result.split(":")[0]] += 1
      shutil.rmtree(folder)
  print(dict(counts))
  sys.exit(any("traceback" in name or "error" in name for name in counts))


if __name__ == "__main__":
  main()
