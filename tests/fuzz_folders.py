"""Folders that are mutated at random; see `tests/fuzz_files.py`."""

import collections
import dataclasses
import json
import pathlib
import random
import re
import tempfile
from collections.abc import Callable

from pdpo_jax.runs import config as config_lib
from tests import fuzz_faults, fuzz_formats, loading


@dataclasses.dataclass
class Tree:
  """Files of a folder, before they are written.

  Attributes:
    files: bytes by path.
    prompts: those that a file's records ask, by path; of others none is read.
    links: paths by path that they are links to.
    strangers: files that hold no records.
  """

  files: dict[str, bytes] = dataclasses.field(default_factory=dict)
  prompts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  links: dict[str, str] = dataclasses.field(default_factory=dict)
  strangers: set[str] = dataclasses.field(default_factory=set)

  def add(self, path: str, rng: random.Random, count: int = 6) -> None:
    """A file of records in the format that its name tells."""
    prompts = [f"{rng.randrange(10**9)}?" for _ in range(count)]
    table = [
      {
        "prompt": prompt,
        "chosen": "b",
        "rejected": "c",
        "user_id": f"u{place % 2}",
      }
      for place, prompt in enumerate(prompts)
    ]
    self.files[path] = fuzz_formats.to_bytes(path, table)
    self.prompts[path] = prompts

  def write(self, folder: pathlib.Path) -> None:
    for path, content in self.files.items():
      file = folder / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(content)
    for path, target in self.links.items():
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      (folder / path).symlink_to(target)


_ENDINGS = (
  ".jsonl", ".jsonl.gz", ".JSONL", ".json", ".csv", ".tsv", ".parquet",
  ".Parquet", ".arrow", ".ndjson", ".csv.bz2", ".jsonl.xz",
)  # fmt: skip
_STEMS = (
  "train", "test", "validation", "dev", "a", "b", "part-1", "my_test_set",
  "Train", "TEST", "training-2", "contest", "trainer", "val.v2", "eval 3",
  "train-00000-of-00002", "data/train-00000-of-00001",
  "data/test_prefs-00000-of-00001", "data/train_prefs-00000-of-00001",
  "train/a", "test/b", "x/train/c", "Validation/d", "deep/er/e", "train-test",
  "test/train",
)  # fmt: skip


def make_tree(rng: random.Random) -> Tree:
  """A folder that somebody may have."""
  tree = Tree()
  for stem in rng.sample(_STEMS, rng.randint(1, 4)):
    tree.add(stem + rng.choice(_ENDINGS), rng)
  return tree


def _add_strangers(tree: Tree, rng: random.Random) -> None:
  """What lies beside data: hidden, or of formats that hold no records."""
  for name in rng.sample(
    (
      "._a.jsonl", ".DS_Store", "__MACOSX/._b.jsonl", ".~lock.a.csv#",
      "_delta_log/0.json", "README.md", "notes.txt", "a.jsonl~",
      "a.xlsx", "dataset_info.json", "x.jsonl.tmp", ".cache/a.jsonl",
      "_SUCCESS", "a.zst",
      "b.parquet.gz", "train.py", ".ipynb_checkpoints/train.jsonl",
      "state.json",
    ),
    4,
  ):  # fmt: skip
    tree.files[name] = rng.randbytes(9)
    tree.strangers.add(name)


def _add_another(tree: Tree, rng: random.Random) -> None:
  tree.add(rng.choice(_STEMS) + rng.choice(_ENDINGS), rng)


def _empty_one(tree: Tree, rng: random.Random) -> None:
  path = rng.choice(list(tree.prompts))
  tree.files[path] = b""
  tree.prompts[path] = []


def _cut_one(tree: Tree, rng: random.Random) -> None:
  path = rng.choice(list(tree.prompts))
  content = tree.files[path]
  tree.files[path] = content[: rng.randrange(1, len(content))]
  del tree.prompts[path]


def _replace_one(tree: Tree, rng: random.Random) -> None:
  """Something else under the name of a data file."""
  path = rng.choice(list(tree.prompts))
  tree.files[path] = rng.choice(
    (
      b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
      b"<!doctype html><html>", b"PK\x03\x04zip", rng.randbytes(99),
      "{}".encode("utf-16"), b"\x28\xb5\x2f\xfd", b"null", b"[]", b"{}",
      b'{"question": "a", "answer": "b"}\n', b"id,score\n1,2\n",
    )
  )  # fmt: skip
  del tree.prompts[path]


def _copy_one(tree: Tree, rng: random.Random) -> None:
  path = rng.choice(list(tree.prompts))
  file = pathlib.PurePath(path)
  copy = file.parent / f"{file.stem.split('.')[0]} copy{''.join(file.suffixes)}"
  tree.files[str(copy)] = tree.files[path]
  tree.prompts[str(copy)] = tree.prompts[path]


def _add_links(tree: Tree, rng: random.Random) -> None:
  path = rng.choice(list(tree.prompts))
  tree.links["ring/self"] = ".."
  if rng.random() < 0.5:
    tree.links["gone.jsonl"] = "nowhere.jsonl"
  elif "/" not in path:
    tree.links[f"linked-{path}"] = path
    tree.prompts[f"linked-{path}"] = tree.prompts[path]


def _save(tree: Tree, rng: random.Random) -> None:
  """A folder as `datasets` saves it, splits and all."""
  tree.files.clear()
  tree.prompts.clear()
  names = rng.choice((("train", "test"), ("train_prefs", "test_prefs"), ("",)))
  for name in names:
    path = f"{name}/data-00000-of-00001.arrow".lstrip("/")
    tree.add(path, rng)
    at = f"{name}/".lstrip("/")
    about = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    state = about | {"_fingerprint": "0", "_format_type": None, "_split": None}
    state |= {"_format_columns": None, "_format_kwargs": {}}
    state |= {"_output_all_columns": False}
    tree.files[f"{at}state.json"] = json.dumps(state).encode()
    tree.files[f"{at}dataset_info.json"] = b"{}"
    tree.files[f"{at}cache-1f.arrow"] = tree.files[path]
  if names[0]:
    tree.files["dataset_dict.json"] = json.dumps({"splits": names}).encode()


KINDS: dict[str, Callable[[Tree, random.Random], None]] = {
  "untouched": lambda tree, rng: None,
  "strangers added": _add_strangers,
  "another file": _add_another,
  "an empty file": _empty_one,
  "a file cut off": _cut_one,
  "something else in a file": _replace_one,
  "a copy": _copy_one,
  "links": _add_links,
  "saved by datasets": _save,
}
OUTCOMES = ("one part", "by splits", "refused")


def fuzz(
  count: int, seed: int, faults: fuzz_faults.Faults
) -> dict[str, collections.Counter[str]]:
  """Outcomes by kind of so many mutated folders."""
  table = collections.defaultdict(collections.Counter)
  for number in range(count):
    rng = random.Random(f"folder {seed} {number}")
    name = tuple(KINDS)[number % len(KINDS)]
    tree = make_tree(rng)
    KINDS[name](tree, rng)
    with tempfile.TemporaryDirectory() as folder:
      tree.write(pathlib.Path(folder))
      table[name][_folder_outcome(folder, tree, name, faults)] += 1
  return table


def _folder_outcome(
  folder: str, tree: Tree, name: str, faults: fuzz_faults.Faults
) -> str:
  config = config_lib.Config()
  config.data.source = "files"
  config.data.path = folder
  config.data.max_bad_share = 0.5
  shown = str(sorted({**tree.files, **tree.links}))
  try:
    dataset = loading.load(config)
  except ValueError as error:
    if folder not in str(error) and ":" not in str(error):
      faults.add(name, "refused without a place", f"{error} {shown}")
    return "refused"
  except Exception as error:
    faults.add(name, f"traceback {type(error).__name__}", f"{error} {shown}")
    return "refused"
  tally = dataset.tally
  held_out = [*dataset.heldout, *dataset.unseen]
  train, heldout = (
    {example.prompt for example in split} for split in (dataset.train, held_out)
  )
  if train & heldout:
    faults.add(name, "trained on and held out", f"{tally} {shown}")
  divided = any(note.startswith("held out") for note in tally.noted)
  not_read = {path for names in tally.not_read.values() for path in names}
  # What is left out may be named by its folder or its split.
  named = re.compile("|".join(map(re.escape, sorted(not_read))) or "$.")
  for path, prompts in tree.prompts.items():
    trained = train.intersection(prompts)
    if trained and _is_of_test(path) and not _is_of_train(path):
      faults.add(name, "test records trained on", f"{path}: {tally} {shown}")
    lost = set(prompts) - trained - heldout
    if len(lost) > tally.dropped.total() and not named.search(path):
      faults.add(name, "file lost silently", f"{path}: {tally} {shown}")
  for path in tree.strangers:
    if not named.match(path):
      faults.add(name, "stranger not named", f"{path}: {tally} {shown}")
  return "by splits" if divided else "one part"


def _is_of_test(path: str) -> bool:
  words = re.split(r"[-._ 0-9/]", path.casefold())
  return not {"test", "validation", "val", "dev", "eval"}.isdisjoint(words)


def _is_of_train(path: str) -> bool:
  words = re.split(r"[-._ 0-9/]", path.casefold())
  return not {"train", "training"}.isdisjoint(words)
