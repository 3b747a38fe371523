"""Runs that start from another one: more choices, or more people."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax import main
from pdpo_jax.data import held_out
from pdpo_jax.data import users as users_lib
from pdpo_jax.data.sources import synthetic
from pdpo_jax.runs import contenders, earlier, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import checkpoint, policies
from pdpo_jax.weights import base as base_lib
from tests import tiny


def run_config(folder, name, kind="individual"):
  config = tiny.tiny_config(folder / name)
  config.name = name
  config.cache = str(folder / "cache")
  config.base.path = str(folder / "base")
  config.user.kind = kind
  config.user.num_clusters = 2
  config.train.epochs = 1
  config.train.batch_size = 4
  config.train.checkpoint_every = 100
  config.train.eval_every = 100
  config.answers.max_new_tokens = 4
  config.answers.batch_size = 8
  return config


def write_choices(file, users, per_user=12, seed=7):
  """Choices of new posts by these users; None is nobody in particular."""
  posts = synthetic.make_posts(per_user * len(users), seed)
  rows = synthetic.comparisons(posts, [str(each) for each in users], (), seed)
  with file.open("w") as out:
    for each in rows:
      chosen, (rejected,) = each.chosen or "none", each.rejected
      row = {"prompt": each.prompt, "chosen": chosen}
      row |= {"rejected": rejected or "none", "user_id": each.user_id}
      if each.user_id == "None":
        del row["user_id"]
      out.write(json.dumps(row) + "\n")


def newcomers(folder, first, file, **train):
  """The config of a run that starts from `first` and learns users alone."""
  config = run_config(folder, "second")
  config.user = run_folder.read_config(folder / first).user
  config.base.path = ""  # The earlier run's.
  config.vanilla = False
  config.data.source, config.data.path = "files", str(file)
  config.data.files.heldout_share = 0.25
  config.train.start_from = str(folder / first)
  config.train.learn = "users"
  config.train = dataclasses.replace(config.train, **train)
  return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A base and two runs on it, and new choices by "x", "2", "y" and nobody."""
  folder = tmp_path_factory.mktemp("earlier")
  config = tiny.tiny_config(folder / "x")
  base = tiny.tiny_base(run_lib.load_dataset(config, None))
  base_lib.write_base(folder / "base", base)
  for kind in ("individual", "cluster"):
    config = run_config(folder, kind, kind)
    config.vanilla = kind == "individual"
    main.train_and_answer(config)
  write_choices(folder / "new.jsonl", ["x", "2", None, "y"])
  return folder


def saved_items(folder):
  with checkpoint.Checkpoints(folder / "pdpo" / "checkpoints") as saved:
    return saved.load_as_saved(saved.steps[-1], ("lora", "users", "optimizer"))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("first", "train"),
  [
    ("individual", {}),
    ("individual", {"sparse_users": True, "accumulation_steps": 2}),
    ("cluster", {}),
  ],
)
def test_newcomers_change_nothing_for_anybody_else(
  runs, tmp_path, first, train
):
  shutil.copytree(runs / first, tmp_path / first)
  config = newcomers(tmp_path, first, runs / "new.jsonl", **train)
  config.lora.dropout = 0.5
  main.train_and_answer(config)
  before, after = saved_items(tmp_path / first), saved_items(config.folder)
  assert json.loads(after["users"]["ids"]) == ["1", "2", "3", "x", "y"]
  for path, value in before["lora"].items():
    np.testing.assert_array_equal(value, after["lora"][path])
  for path, value in before["users"]["table"].items():
    new = np.asarray(after["users"]["table"][path])
    if path.endswith(("offsets", "weights")):
      changed = (new[:4] != np.asarray(value)).reshape(4, -1).any(1)
      assert changed.tolist() == [False, False, True, False]
      assert (new[4:] != new[0]).reshape(2, -1).any(1).all()
    else:
      np.testing.assert_array_equal(value, new)
  # Nothing else has gradients, nor moments.
  lines = (config.folder / "pdpo" / "metrics.jsonl").read_text().splitlines()
  steps = [row for row in map(json.loads, lines) if "grad_norm_lora" in row]
  assert steps
  for row in steps:
    assert row["grad_norm_lora"] == 0 < row["grad_norm_users"]
  table = max(map(np.size, after["users"]["table"].values()))
  rows = table if first == "individual" else np.size(new)
  moments = sum(map(np.size, after["optimizer"].values()))
  assert 2 * rows <= moments <= 2 * rows + 4
  found = json.loads((config.folder / "report" / "report.json").read_text())
  own, other = (row["name"] for row in found["accuracy"])
  assert own.startswith("P-DPO, ") and other == f"before ({first})"
  assert f"before ({first})" in found["verdict"]
  # Whoever only reads the run needs nothing of the earlier one but its base.
  heldout = run_lib.load_dataset(config, None).heldout
  shutil.rmtree(tmp_path / first)
  again = run_folder.read_config(config.folder)
  assert again.base.path == str(runs / "base")
  assert run_lib.load_dataset(again, None, again.folder).heldout == heldout


def test_what_is_new_begins_as_the_generic_user(runs):
  for first in ("individual", "cluster"):
    config = newcomers(runs, first, runs / "new.jsonl")
    config = earlier.resolve(config)
    base = run_lib.read_base(config, config.folder)
    place = runs / first / "pdpo"
    old, known, _ = policies.load(config.recipe, base, place, of_run=False)
    policy = policies.begin_as(
      policies.make_policy(config.recipe, base, 6), old, known
    )
    users, before = (each.merge().user_model for each in (policy, old))
    rows = jnp.arange(4)
    np.testing.assert_array_equal(users(rows), before(rows))
    assert (np.asarray(before(rows))[1:] != before.generic()).any()
    for row in users(jnp.array([4, 5])):
      np.testing.assert_allclose(row, before.generic(), atol=1e-6)


@pytest.mark.slow
def test_a_training_goes_on_with_more_choices_and_vanilla_beside_it(
  runs, tmp_path
):
  config = newcomers(runs, "individual", runs / "new.jsonl")
  config.workdir = str(tmp_path / "more")
  config.vanilla, config.train.learn = True, "all"
  # So little that it is where it started.
  config.train.learning_rate = 1e-20
  main.train_and_answer(config)
  for name in ("pdpo", "vanilla"):
    items = []
    for folder in (runs / "individual", config.folder):
      with checkpoint.Checkpoints(folder / name / "checkpoints") as saved:
        items.append(saved.load_as_saved(saved.steps[-1], ("lora",))["lora"])
    for path, value in items[0].items():
      np.testing.assert_allclose(value, items[1][path], atol=1e-12)
      assert np.any(np.asarray(value))
  found = json.loads((config.folder / "report" / "report.json").read_text())
  assert [row["name"] for row in found["accuracy"]] == [
    "P-DPO, individual", "vanilla DPO", "before (individual)",
  ]  # fmt: skip
  assert "vanilla DPO" in found["verdict"]


def test_what_it_was_trained_on_before_is_not_held_out(runs, tmp_path):
  # The first run's own choices once more, and some new ones.
  first = run_folder.read_config(runs / "individual")
  whole = run_lib.load_dataset(first, None)
  record = run_folder.read_held_out(runs / "individual")
  with (tmp_path / "all.jsonl").open("w") as out:
    for each in [*whole.train, *whole.heldout]:
      (rejected,) = each.rejected
      if each.chosen and rejected:
        row = {"prompt": each.prompt, "user_id": "z", "rejected": rejected}
        out.write(json.dumps(row | {"chosen": each.chosen}) + "\n")
    out.write((runs / "new.jsonl").read_text())
  config = newcomers(runs, "individual", tmp_path / "all.jsonl")
  without = dataclasses.replace(
    config, train=dataclasses.replace(config.train, start_from="", learn="all")
  )
  dealt = run_lib.load_dataset(without, None)
  assert digests(dealt.heldout) & record.trained
  assert digests(dealt.train) & record.heldout
  dataset = run_lib.load_dataset(config, None)
  assert digests(dataset.heldout) & record.heldout
  assert not digests(dataset.heldout) & record.trained
  assert digests(dataset.train) & record.trained
  assert not digests(dataset.train) & record.heldout
  assert {each.prompt for each in dataset.prompts} <= {
    each.prompt for each in dataset.heldout
  }


def digests(examples):
  return {digest for each in examples for digest in held_out.digests(each)}


@pytest.mark.slow
def test_a_third_run_keeps_what_the_first_one_held_out(runs, tmp_path):
  shutil.copytree(runs / "individual", tmp_path / "individual")
  second = newcomers(tmp_path, "individual", runs / "new.jsonl")
  main.train_and_answer(second)
  records = [
    run_folder.read_held_out(tmp_path / each)
    for each in ("individual", "second")
  ]
  for name in ("trained", "users"):
    assert getattr(records[0], name) < getattr(records[1], name)
  assert records[1].users == {"1", "2", "3", "x", "y"}
  assert records[0].heldout < records[1].heldout
  assert not records[1].trained & records[1].heldout
  # What is done needs the earlier run no more, and ends where it ended.
  results = (second.folder / "held_out.json").read_text()
  state = tiny.digest_of_newest(second.folder / "pdpo")
  shutil.rmtree(tmp_path / "individual")
  main.train_and_answer(second)
  assert (second.folder / "held_out.json").read_text() == results
  assert tiny.digest_of_newest(second.folder / "pdpo") == state
  # The third has the choices of the first's base data, by somebody else.
  write_choices(tmp_path / "third.jsonl", ["w", "x"])
  third = newcomers(tmp_path, "second", tmp_path / "third.jsonl")
  third.workdir = str(tmp_path / "third")
  main.train_and_answer(third)
  items = saved_items(third.folder)
  assert json.loads(items["users"]["ids"]) == ["1", "2", "3", "x", "y", "w"]
  assert run_folder.read_held_out(third.folder).trained > records[1].trained


def test_a_run_that_is_refused_leaves_the_record_alone(runs, tmp_path):
  shutil.copytree(runs / "individual", tmp_path / "individual")
  config = newcomers(tmp_path, "individual", tmp_path / "new.jsonl")
  text = (runs / "new.jsonl").read_text()
  (tmp_path / "new.jsonl").write_text(text)
  main.train_and_answer(config)
  before = (config.folder / "held_out.json").read_text()
  write_choices(tmp_path / "more.jsonl", ["y"], seed=8)
  with (tmp_path / "new.jsonl").open("a") as out:
    out.write((tmp_path / "more.jsonl").read_text())
  with pytest.raises(ValueError, match="data is"):
    main.train_and_answer(config)
  assert (config.folder / "held_out.json").read_text() == before


def test_the_run_before_is_read_by_the_limits_of_the_one_after(runs, tmp_path):
  shutil.copytree(runs / "individual", tmp_path / "individual")
  config = newcomers(tmp_path, "individual", runs / "new.jsonl")
  config.data.max_response_tokens, config.data.long_response = 30, "drop"
  kept = sorted((tmp_path / "individual").rglob("*"))
  main.train_and_answer(config)
  found = json.loads((config.folder / "report" / "report.json").read_text())
  own, before = found["accuracy"]
  assert own["num_pairs"] == before["num_pairs"]
  # What is found of it is kept with the run that asked.
  assert sorted((tmp_path / "individual").rglob("*")) == kept
  assert list((config.folder / "before" / "scores").iterdir())


def test_a_run_before_that_cannot_be_read_is_left_out(runs, tmp_path, caplog):
  shutil.copytree(runs / "individual", tmp_path / "individual")
  config = newcomers(tmp_path, "individual", runs / "new.jsonl")
  main.train_and_answer(config)
  base = base_lib.read_base(str(runs / "base"), config.base)
  assert len(contenders.open_contenders(config.folder, (), base)) == 2
  record = run_folder.read_held_out(tmp_path / "individual")
  other = dataclasses.replace(record, trained=record.trained | {"0" * 16})
  run_folder.write_held_out(tmp_path / "individual", other)
  assert len(contenders.open_contenders(config.folder, (), base)) == 1
  assert "it was trained again, on other data" in caplog.text
  shutil.rmtree(tmp_path / "individual")
  assert len(contenders.open_contenders(config.folder, (), base)) == 1


def test_a_run_that_was_cut_off_goes_on_from_its_own_state(runs, tmp_path):
  whole = newcomers(runs, "individual", runs / "new.jsonl")
  whole.train.epochs, whole.train.checkpoint_every = 4, 2
  whole.workdir = str(tmp_path / "whole")
  main.train_and_answer(whole)
  cut = dataclasses.replace(whole, workdir=str(tmp_path / "cut"))
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  (tmp_path / "cut" / "held_out.json").unlink()
  (tmp_path / "cut" / "answers.jsonl").unlink()
  with checkpoint.Checkpoints(tmp_path / "cut/pdpo/checkpoints") as saved:
    (*_, before, last) = saved.steps
  shutil.rmtree(tmp_path / "cut/pdpo/checkpoints" / str(last))
  main.train_and_answer(cut)
  one, other = (
    tiny.digest_of_newest(each / "pdpo") for each in (whole.folder, cut.folder)
  )
  assert one == other and before < last


def test_what_users_said_of_themselves_before_is_kept(runs, tmp_path):
  shutil.copytree(runs / "individual", tmp_path / "individual")
  texts = {"1": "I am one.", "x": "I was another."}
  run_folder.write_user_texts(tmp_path / "individual", texts)
  config = newcomers(tmp_path, "individual", tmp_path / "new.jsonl")
  with (tmp_path / "new.jsonl").open("w") as out:
    for line in (runs / "new.jsonl").read_text().splitlines():
      row = json.loads(line)
      if row.get("user_id") == "x":
        row["user_text"] = "I am x."
      out.write(json.dumps(row) + "\n")
  main.train_and_answer(config)
  found = run_folder.read_user_texts(config.folder)
  assert found == {"1": "I am one.", "x": "I am x."}


def test_a_control_spoils_nothing_that_is_held_out(runs, tmp_path):
  first = run_folder.read_config(runs / "individual")
  config = run_config(tmp_path, "control")
  config.seed = first.seed
  config.data = dataclasses.replace(
    first.data,
    synthetic=dataclasses.replace(
      first.data.synthetic, train_per_worker=6, heldout_per_worker=5
    ),
    swap_choices=1.0,
  )
  config.train.start_from = str(runs / "individual")
  found = run_lib.load_dataset(config, None)
  assert "moved to the side" in str(found.tally)
  config.data.swap_choices = 0.0
  clean = run_lib.load_dataset(config, None)
  assert found.heldout == clean.heldout
  for each, other in zip(found.train, clean.train, strict=True):
    assert (each.chosen,) == other.rejected


def test_the_base_of_the_run_before_is_read_in_the_types_it_was(
  tmp_path, monkeypatch
):
  first, second = (tiny.tiny_config(tmp_path / name) for name in ("a", "b"))
  first.base.path, first.base.param_dtype = "owner/name", "bfloat16"
  run_folder.begin_or_continue(first)
  second.train.start_from = str(first.folder)
  monkeypatch.setattr(earlier, "_check", lambda *_: None)
  assert earlier.resolve(second).base == first.base


def test_comparisons_without_a_user_teach_newcomers_nothing(runs, tmp_path):
  config = newcomers(runs, "individual", runs / "new.jsonl")
  dataset = run_lib.load_dataset(config, None)
  assert {each.user_id for each in dataset.train} == {"x", "2", "y"}
  assert "training comparisons without a user" in str(dataset.tally)
  write_choices(tmp_path / "none.jsonl", [None])
  config.data.path = str(tmp_path / "none.jsonl")
  with pytest.raises(ValueError, match="has nobody to learn of"):
    run_lib.load_dataset(config, None)


def test_what_cannot_be_started_from_is_named(runs, tmp_path):
  def refuse(match, change):
    config = newcomers(runs, "individual", runs / "new.jsonl")
    config.workdir = str(tmp_path / "run")
    change(config)
    with pytest.raises(ValueError, match=match):
      main.train_and_answer(config)
    assert not (tmp_path / "run" / "pdpo").exists()

  def set_to(path, value):
    def change(config):
      *sections, name = path.split(".")
      for each in sections:
        config = getattr(config, each)
      setattr(config, name, value)

    return change

  shutil.copytree(runs / "individual", tmp_path / "cut")
  (tmp_path / "cut" / "answers.jsonl").unlink()
  shutil.copytree(runs / "individual", tmp_path / "old")
  (tmp_path / "old" / "held_out.json").unlink()
  for match, change in (
    ("is no run folder", set_to("train.start_from", str(tmp_path / "none"))),
    ("start its training command", set_to(
      "train.start_from", str(tmp_path / "cut"))),
    ("held_out.json is missing", set_to(
      "train.start_from", str(tmp_path / "old"))),
    ("is this run's own folder", set_to("workdir", str(runs / "individual"))),
    ("user.num_tokens is 3 there and 4 here", set_to("user.num_tokens", 4)),
    ("lora.rank is 2 there and 3 here", set_to("lora.rank", 3)),
    ("named by their rank", set_to(
      "data.source", "tldr")),
    ("is not taught where", set_to("sft.path", str(runs / "base"))),
    ("train.learn 'rows' must be one of", set_to("train.learn", "rows")),
    ("--config.vanilla=False", set_to("vanilla", True)),
    ("name that run's folder with", set_to("train.start_from", "")),
    ("nothing to train", set_to("user.kind", "none")),
  ):  # fmt: skip
    refuse(match, change)

  def go_on(config):
    config.train.learn, config.vanilla = "all", True
    config.user = run_folder.read_config(runs / "cluster").user
    config.train.start_from = str(runs / "cluster")

  refuse("or do without .--config.vanilla=False", go_on)


def test_new_users_come_after_those_who_are_known():
  known = users_lib.UserIndex(["b", "a"])
  both = known.extended(users_lib.UserIndex(["a", "c", "0"]))
  assert both.ids == ("b", "a", "c", "0")
