"""A run of three people for tests, whose every file has something of theirs.

What `tests.tiny_run` made once, on data in a file, with ids and texts that are
found again wherever they are. Nothing is trained.
"""

import dataclasses
import json
import pathlib
import shutil
import tarfile

import numpy as np

from pdpo_jax.core import kept
from pdpo_jax.data import comparisons, held_out
from pdpo_jax.runs import people, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import checkpoint

ARCHIVE = pathlib.Path(__file__).parents[1] / "golden/run_of_127366c.tar.gz"
ANN, BEA, CEM = "person-ann-1", "person-beä-2", "person-cem-3"
# Came after training.
DEE, EVE = "person-dee-4", "person-eve-5"
_IDS = {"1": ANN, "2": BEA, "3": CEM}


def mark(user_id: str) -> str:
  """Stands in each text of a person's."""
  return f"mark-of-{user_id.split('-')[2]}"


def make(place: pathlib.Path) -> pathlib.Path:
  """The run folder `place / "run"`, and its data beside it."""
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(place, filter="data")
  folder = place / "run"
  dataset = run_lib.Run.open(folder).dataset
  shared = dataset.train[0].prompt
  keys = {}

  def renamed(example):
    user_id = _IDS[example.user_id]
    text = f" {mark(user_id)}"
    # Everybody compared responses to one prompt.
    prompt = example.prompt + text
    if example in (dataset.train[0], dataset.train[1]):
      prompt = shared
    new = dataclasses.replace(
      example,
      user_id=user_id,
      user_text=f"I am {mark(user_id)}.",
      prompt=prompt,
      chosen=example.chosen + text,
      rejected=tuple(each + " no" + text for each in example.rejected),
    )
    keys[scores_lib.example_key(example)] = scores_lib.example_key(new)
    return new

  for split in ("train", "heldout"):
    examples = [*map(renamed, getattr(dataset, split))]
    lines = [
      {"user_id": x.user_id, **json.loads(comparisons.to_json(x))}
      for x in examples
    ]
    kept.write_jsonl(place / f"{split}.jsonl", lines)
  config = json.loads((folder / "config.json").read_text())
  config |= {"workdir": str(folder), "cache": str(place / "cache")}
  config["data"] |= {"source": "files", "path": str(place / "train.jsonl")}
  config["data"]["files"]["heldout_path"] = str(place / "heldout.jsonl")
  config["data"]["synthetic"] |= {"short_workers": []}
  config["base"]["path"] = str(folder / "base")
  config["answers"]["users"] = [ANN, BEA]
  kept.write_json(folder / "config.json", config)
  dataset = run_lib.Run.open(folder).dataset
  for name in ("vanilla", "pdpo"):
    _rename_in_checkpoints(folder / name / "checkpoints", dataset.digest)
  _rename_in_files(folder, keys, dataset)
  return folder


def _rename_in_checkpoints(place: pathlib.Path, digest: str) -> None:
  old = place.with_name("old")
  place.rename(old)
  with (
    checkpoint.Checkpoints(old) as saved,
    checkpoint.Checkpoints(place, keep=2) as out,
  ):
    for step in saved.steps:
      items = saved.load_as_saved(step, ("lora", "users", "optimizer"))
      if "users" in items:
        items["users"]["ids"] = json.dumps([*_IDS.values()])
      out.save(step, items | {"meta": saved.meta(step) | {"data": digest}})
  shutil.rmtree(old)


def _rename_in_files(folder, keys, dataset):
  def lines_of(file, change):
    lines = [json.loads(x) for x in file.read_text().splitlines()]
    for line in lines:
      line.pop("crc32", None)
      change(line)
    return lines

  def by_user(line):
    line["user_id"] = _IDS[line["user_id"]]
    line["sample"] = keys[line["sample"]]
    if "response" in line:
      line["response"] += f" {mark(line['user_id'])}"

  for file in [*folder.rglob("scores/*.jsonl"), *folder.rglob("responses/*l")]:
    kept.write_jsonl(file, lines_of(file, by_user))
    before = folder / "before" / file.parent.name / file.name
    kept.write_jsonl(before, lines_of(file, lambda line: None))
  # One judgement of somebody's becomes one of each.
  (first, *_) = lines_of(folder / "judgements.jsonl", lambda line: None)
  (folder / "judgements.jsonl").unlink()
  for user_id in (ANN, BEA, CEM):
    line = first | {"user_id": user_id, "system": f"They say {mark(user_id)}"}
    kept.append(folder / "judgements.jsonl", [line])
  prompts = {
    0: next(x for x in dataset.heldout if x.user_id == ANN),
    1: next(x for x in dataset.heldout if x.user_id == BEA),
  }

  def answer(line):
    line["speaker"] = _IDS.get(line["speaker"], line["speaker"])
    line["prompt"] = prompts[line["seed"]].prompt
    line["user_text"] = prompts[line["seed"]].user_text

  answers = folder / "answers.jsonl"
  kept.write_jsonl(answers, lines_of(answers, answer))
  record = held_out.Record().after(dataset)
  run_folder.write_held_out(folder, record)
  run_folder.write_user_texts(folder, dataset.user_texts())
  results = (folder / "results.json").read_text()
  for old, new in _IDS.items():
    results = results.replace(f'"{old}":', f'"{new}":')
  results = json.loads(results)
  everyone = {x: [0.5, 1] for x in (ANN, BEA, CEM)}
  results["reward_accuracy"]["pdpo"]["of_whatever"] = everyone
  results["reward_accuracy"]["pdpo"]["of_whom"] = [ANN, BEA]
  kept.write_json(folder / "results.json", results)
  everyone = " ".join(f"{x} {mark(x)}" for x in (ANN, BEA, CEM))
  for name in ("index.html", "report.md", "report.json", "figures/a.png"):
    kept.write(folder / "report" / name, json.dumps(everyone))
  (folder / "data_report.txt").write_text(everyone)
  (folder / "data_report.png").write_text("histograms")
  shutil.copytree(
    folder / "pdpo/checkpoints/2", folder / "pdpo/checkpoints_unreadable/2_0"
  )
  for user_id in (DEE, EVE):
    choices = [
      dataclasses.replace(
        x, user_id=user_id, user_text="", chosen=f"{n} {mark(user_id)}"
      )
      for n, x in enumerate(x for x in dataset.train if x.user_id == ANN)
    ]
    people.People.of_run(folder).add(choices, learnt(folder, len(choices)))


def learnt(folder: pathlib.Path, num_choices: int) -> people.Learnt:
  """Something that was learnt of somebody."""
  row = np.arange(3 * 16, dtype=np.float32) / 7 + num_choices
  policy = run_lib.Run.open(folder).own.shared_digest
  posterior = {
    "groups": np.ones(2) / 2,
    "z": np.ones((2, 3)),
    "covariance": np.stack([np.eye(3)] * 2),
    "choices": np.array(num_choices),
    "log_evidence": np.array(-1.5),
    "iterations": np.array(4),
    "converged": np.array(True),
  }
  return people.Learnt(row, posterior, num_choices, -1.5, policy)
