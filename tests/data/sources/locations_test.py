"""Folders and hub data sets, and what of them is trained on and held out."""

import json
import random
import sys
import types

import datasets
import pytest

from pdpo_jax.data.sources import folders, locations
from tests import fuzz_formats, loading
from tests.data.sources import preference_files_test as files
from tests.data.sources import preference_splits_test as splits

RECORD = files.RECORD


def fill(folder, *paths):
  """Writes files whose records ask for their paths."""
  for path in paths:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    table = [RECORD | {"prompt": f"{path} {number}?"} for number in range(4)]
    file.write_bytes(fuzz_formats.to_bytes(path, table))
  return folder


def load(folder, **options):
  """Which files are trained on and held out, and the account."""
  config = splits.config_of(folder.parent, [RECORD])
  config.data.path = str(options.pop("path", folder))
  for name, value in options.items():
    setattr(config.data.files, name, value)
  dataset = loading.load(config)
  both = (dataset.train, [*dataset.heldout, *dataset.unseen])
  train, heldout = (
    {example.prompt.split()[0] for example in split} for split in both
  )
  return train, heldout, dataset.tally


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "data of mine"
  folder.mkdir()
  return folder


@pytest.mark.parametrize(
  ("train", "heldout"),
  [
    ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    ("train.jsonl", "test.jsonl"),
    ("Train.CSV", "Test.CSV"),
    ("training_set.tsv", "my.dev.json"),
    ("train/a.jsonl.gz", "validation/a.jsonl.gz"),
    ("x/train/a.parquet", "x/eval/a.parquet"),
    ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"),
    (
      "data/train_prefs-00000-of-00001.parquet",
      "data/test_prefs-00000-of-00001.parquet",
    ),
    ("train.parquet/part-0.parquet", "test.parquet/part-0.parquet"),
  ],
)
def test_a_split_named_after_tests_is_held_out(folder, train, heldout):
  fill(folder, train, heldout)
  trained, held_out, tally = load(folder)
  assert (trained, held_out) == ({train}, {heldout})
  (note,) = (note for note in tally.noted if note.startswith("held out"))
  assert tally.noted[note] == 4


def test_validation_is_held_out_before_test_which_is_named(folder):
  fill(folder, "train.jsonl", "validation.jsonl", "test.jsonl")
  trained, held_out, tally = load(folder)
  assert (trained, held_out) == ({"train.jsonl"}, {"validation.jsonl"})
  reason = "split 'test' is neither trained on nor held out"
  assert tally.not_read == {reason: {"test.jsonl": None}}


@pytest.mark.parametrize(
  ("path", "heldout_path", "expected"),
  [
    (":train", "", ({"train.jsonl"}, {"train.jsonl"})),
    (":test", "", ({"test.jsonl"}, {"test.jsonl"})),
    (":train", ":test", ({"train.jsonl"}, {"test.jsonl"})),
    ("", "", ({"train.jsonl"}, {"dev.jsonl"})),
    ("/train.jsonl", "", ({"dev.jsonl"}, {"dev.jsonl"})),
    ("/train.jsonl", ":validation", ({"train.jsonl"}, {"dev.jsonl"})),
  ],
)
def test_a_split_may_be_named_behind_a_colon(
  folder, path, heldout_path, expected
):
  fill(folder, "train.jsonl", "dev.jsonl", "test.jsonl")
  options = {"heldout_path": f"{folder}{heldout_path}"} if heldout_path else {}
  trained, held_out, _ = load(folder, path=f"{folder}{path}", **options)
  if path == "/train.jsonl" and not heldout_path:
    expected = ({"train.jsonl"}, {"train.jsonl"})
  assert (trained, held_out) == expected


def test_a_folder_given_as_held_out_gives_its_own_split(folder, tmp_path):
  fill(folder, "train.jsonl", "test.jsonl")
  other = fill(tmp_path / "other", "a.jsonl", "b.jsonl")
  trained, held_out, tally = load(folder, heldout_path=str(other))
  assert (trained, held_out) == ({"train.jsonl"}, {"a.jsonl", "b.jsonl"})
  assert "test.jsonl" in str(tally.not_read)
  _, held_out, _ = load(other, heldout_path=str(folder))
  assert held_out == {"test.jsonl"}


def test_all_files_of_a_folder_are_read_however_they_are_spelt(folder):
  paths = {
    "a.jsonl", "b.jsonl.gz", "c.JSONL", "data/z.jsonl", "deep/er/d.ndjson",
    "e.csv", "f.tsv", "g.json", "h.parquet", "i.arrow", "contest.jsonl",
    "latest.csv.bz2", "train-test.jsonl",
  }  # fmt: skip
  trained, held_out, tally = load(fill(folder, *paths), heldout_share=0.5)
  assert trained | held_out == paths
  assert not tally.not_read


def test_what_is_left_out_is_named_with_the_reason(folder):
  fill(folder, "a.jsonl")
  hidden = ["._a.jsonl", ".DS_Store", "__MACOSX/", ".cache/", "_delta_log/"]
  others = ["notes.txt", "README.md", "a.jsonl~", "a.zst", "b.parquet.gz"]
  about = ["dataset_infos.json", "config.json"]
  for name in (*hidden, *others, *about):
    file = folder / (f"{name}a.jsonl" if name.endswith("/") else name)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x00\x05\x16\x07")
  (folder / "empty.jsonl").touch()
  trained, _, tally = load(folder)
  assert trained == {"a.jsonl"}
  assert not tally.broken
  assert {reason: set(names) for reason, names in tally.not_read.items()} == {
    "hidden": set(hidden),
    "no format of records": set(others),
    "about the data": set(about),
    "empty": {"empty.jsonl"},
  }
  assert "not read (empty): 'empty.jsonl'" in str(tally)


def test_files_of_no_split_are_left_out_and_named(folder):
  fill(folder, "train.jsonl", "extra.jsonl", "test.jsonl")
  trained, held_out, tally = load(folder)
  assert "extra.jsonl" not in trained | held_out
  reason = "of no split, where others are of one"
  assert tally.not_read == {reason: {"extra.jsonl": None}}


@pytest.mark.parametrize(
  ("paths", "problem"),
  [
    (["test.jsonl"], "has the splits test"),
    (["a.jsonl", "test.jsonl"], r"test \(and a.jsonl of no split\)"),
    (
      [f"data/train_{a}-00000-of-00001.jsonl" for a in ("sft", "prefs")],
      r"train_prefs, train_sft.*:train_prefs'",
    ),
  ],
)
def test_a_folder_that_does_not_say_what_to_train_on_is_refused(
  folder, paths, problem
):
  with pytest.raises(ValueError, match=problem):
    load(fill(folder, *paths))


def test_a_split_that_is_not_there_is_refused_with_those_that_are(folder):
  fill(folder, "train.jsonl", "test.jsonl")
  with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
    load(folder, path=f"{folder}:dev")
  with pytest.raises(ValueError, match="a file has no splits"):
    load(folder, path=f"{folder}/train.jsonl:train")


def test_empty_files_alone_are_refused(folder):
  (folder / "a.jsonl").touch()
  (folder / "b.jsonl").write_text("\n\n")
  with pytest.raises(ValueError, match=r"a\.jsonl and b\.jsonl should have"):
    load(folder)


def test_links_are_followed_once_and_broken_ones_refused(folder):
  fill(folder, "a.jsonl")
  (folder / "b.jsonl").symlink_to("a.jsonl")
  (folder / "ring").symlink_to(".")
  trained, held_out, tally = load(folder, heldout_share=0.4)
  assert trained | held_out == {"a.jsonl"}
  assert tally.noted["comparisons that repeat one of the same user"] == 4
  (folder / "c.jsonl").symlink_to("nowhere")
  with pytest.raises(ValueError, match=r"no file .*c\.jsonl"):
    load(folder)


def test_a_copied_file_is_noted(folder):
  fill(folder, "a.jsonl")
  (folder / "a copy.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
  _, _, tally = load(folder)
  assert tally.noted["comparisons that repeat one of the same user"] == 4


@pytest.mark.parametrize(
  "names", [("train", "test"), ("train_prefs", "test_prefs"), ("",)]
)
def test_what_datasets_saved_is_read_with_its_splits(folder, names):
  tables = {
    name: datasets.Dataset.from_list(
      [
        RECORD | {"prompt": f"{name or 'all'} {number}?", "score": 1.0}
        for number in range(4)
      ]
    )
    for name in names
  }
  saved = datasets.DatasetDict(tables) if names[0] else tables[""]
  saved.save_to_disk(str(folder))
  for cache in folder.rglob("data-*.arrow"):  # Of `Dataset.map`.
    (cache.parent / "cache-1f.arrow").write_bytes(cache.read_bytes())
  trained, held_out, tally = load(folder)
  assert trained == {names[0] or "all"}
  assert held_out == {names[-1] or "all"}
  assert tally.records == 4 * len(names)
  assert tally.not_read["column without a use"] == {"score": None}


def test_a_broken_saved_data_set_is_refused_with_its_folder(folder):
  datasets.Dataset.from_list([RECORD]).save_to_disk(str(folder))
  (folder / "state.json").write_text("{}")
  with pytest.raises(ValueError, match="data of mine cannot be read as a"):
    load(folder)


def test_splits_of_a_saved_dictionary_are_those_that_it_names(folder):
  splits = {
    name: datasets.Dataset.from_list([RECORD | {"prompt": f"{name}?"}])
    for name in ("train_sft", "train_prefs", "probe")
  }
  datasets.DatasetDict(splits).save_to_disk(str(folder))
  with pytest.raises(ValueError, match="splits probe, train_prefs, train_sft"):
    load(folder)
  location = locations.find(f"{folder}:probe")
  assert location.training_split() == "probe"


def write_card(folder, *configs):
  """The README.md of a hub data set."""
  text = json.dumps({"configs": configs})  # JSON is YAML too.
  (folder / "README.md").write_text(f"---\n{text}\n---\n# Mine\n")


def test_a_card_of_the_hub_says_which_files_are_of_which_split(folder):
  fill(folder, "x/a.jsonl", "x/y/b.jsonl", "c.jsonl", "train.jsonl")
  paths = [
    {"split": "train", "path": ["x/a*", "x/y/*"]},
    {"split": "test", "path": "c.jsonl"},
  ]
  write_card(folder, {"config_name": "any", "data_files": paths})
  trained, held_out, tally = load(folder)
  assert (trained, held_out) == ({"x/a.jsonl", "x/y/b.jsonl"}, {"c.jsonl"})
  reason = "of no split, where others are of one"
  assert tally.not_read[reason] == {"train.jsonl": None}
  write_card(folder, {"data_files": "x/**"})
  trained, held_out, _ = load(folder, heldout_share=0.5)
  assert trained | held_out == {"x/a.jsonl", "x/y/b.jsonl"}


def test_a_card_of_several_configurations_needs_a_default(folder):
  fill(folder, "a.jsonl", "b.jsonl")
  configs = [
    {"config_name": name, "data_files": f"{name}.jsonl"} for name in "ab"
  ]
  write_card(folder, *configs)
  with pytest.raises(
    ValueError, match=r"README.md has the configurations a, b"
  ):
    load(folder)
  write_card(folder, configs[0], configs[1] | {"default": True})
  trained, held_out, _ = load(folder, heldout_share=0.5)
  assert trained | held_out == {"b.jsonl"}


@pytest.mark.parametrize(
  "card",
  [
    "---\nconfigs: [\n---\n",
    "---\nconfigs: 3\n---\n",
    "---\nconfigs: [{data_files: [{split: train}]}]\n---\n",
    "---\nconfigs: [{data_files: /etc/*}]\n---\n",
  ],
)
def test_a_card_that_cannot_be_read_is_refused(folder, card):
  fill(folder, "a.jsonl")
  (folder / "README.md").write_text(card)
  with pytest.raises(ValueError, match=r"README\.md"):
    load(folder)


@pytest.mark.parametrize(
  "card", [b"# Mine\n", b"---\nlicense: mit\n---\n", b"", b"na\xefve\n"]
)
def test_a_card_without_configurations_changes_nothing(folder, card):
  fill(folder, "a.jsonl")
  (folder / "README.md").write_bytes(card)
  assert load(folder)[0] == {"a.jsonl"}


def test_a_shard_that_is_missing_is_named(folder):
  fill(folder, *(f"data/train-0000{n}-of-00004.parquet" for n in (0, 2)))
  _, _, tally = load(folder)
  assert tally.not_read["missing"] == {
    "data/train-00001-of-00004.parquet": None,
    "data/train-00003-of-00004.parquet": None,
  }


def fake_hub(monkeypatch, **stored):
  """A hub with one data set of these splits."""

  def load_dataset(path, name=None, *, split=None):
    assert path == "some/data"
    return stored if split is None else stored[split]

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", fake)


def records_of(name):
  return [RECORD | {"prompt": f"{name} {number}?"} for number in range(4)]


def test_a_hub_data_set_is_split_as_a_folder_is(folder, monkeypatch):
  splits = {name: records_of(name) for name in ("train", "validation", "test")}
  fake_hub(monkeypatch, **splits)
  trained, held_out, tally = load(folder, path="some/data")
  assert (trained, held_out) == ({"train"}, {"validation"})
  reason = "split 'test' is neither trained on nor held out"
  assert tally.not_read == {reason: {"some/data/test": None}}
  trained, held_out, _ = load(
    folder, path="some/data:train", heldout_path="some/data:test"
  )
  assert (trained, held_out) == ({"train"}, {"test"})


def test_columns_of_a_hub_data_set_without_a_use_are_not_decoded(
  folder, monkeypatch
):
  from_list = datasets.Dataset.from_list
  features = from_list([RECORD]).features | {"picture": datasets.Image()}
  table = [
    RECORD | {"prompt": f"train {n}?", "picture": b"no"} for n in range(9)
  ]
  fake_hub(
    monkeypatch,
    train=from_list(table, features=datasets.Features(features)),
  )
  trained, _, tally = load(folder, path="some/data")
  assert trained == {"train"}
  assert tally.not_read == {"column without a use": {"picture": None}}


@pytest.mark.parametrize(
  ("options", "option"),
  [({}, "data.path"), ({"heldout_path": "./no"}, "data.files.heldout_path")],
)
def test_an_error_says_which_path_is_meant(folder, options, option):
  fill(folder, "a.jsonl")
  options = options or {"path": "./no"}
  with pytest.raises(
    ValueError, match=f"^{option}: there is no file or folder"
  ):
    load(folder, **options)


def test_a_split_of_a_hub_data_set_is_split_by_share(folder, monkeypatch):
  fake_hub(monkeypatch, train=records_of("train"), test=records_of("test"))
  trained, held_out, _ = load(folder, path="some/data:train")
  assert trained == held_out == {"train"}


_NAMES = (
  "train", "test", "validation", "valid", "dev", "val", "eval", "a", "b.c",
  "training", "testing", "evaluation", "contest", "trainer", "dev2", "my-train",
  "my_test", "x 1", "train.v2", "1test", "pretrain", "va-l", "data", "train-1",
  "train-00000-of-00001", "test-00001-of-00002", "abc-00000-of-00001",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_splits_are_those_that_the_hubs_own_rules_find(tmp_path, seed):
  """But for files that belong to two splits by them, and by ours to one."""
  rng = random.Random(seed)
  for number in range(10):
    folder = tmp_path / f"{number}"
    for _ in range(rng.randint(1, 5)):
      parts = rng.sample(_NAMES, rng.choice((1, 1, 2, 3)))
      if rng.random() < 0.3:
        parts = ["data", *parts[-1:]]
      file = folder.joinpath(*parts[:-1], parts[-1] + ".jsonl")
      file.parent.mkdir(parents=True, exist_ok=True)
      file.touch()
    patterns = datasets.data_files.get_data_patterns(str(folder))
    theirs = datasets.data_files.DataFilesDict.from_patterns(
      patterns, base_path=str(folder)
    )
    split_of = {}
    for split, paths in theirs.items():
      for path in paths:
        split_of.setdefault(path, []).append(str(split))
    ours = {
      str(path): split or "train"
      for split, paths in folders.list_folder(folder).splits.items()
      for path in paths
    }
    if any(len(names) > 1 for names in split_of.values()):
      continue
    assert ours == {path: names[0] for path, names in split_of.items()}
