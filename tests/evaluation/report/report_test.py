"""`evaluate` on small runs, from their folders to a report."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from pdpo_jax import evaluate, generate, main
from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.report import accuracy, controls, users
from pdpo_jax.inference import respond
from pdpo_jax.runs import contenders, experiment, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.weights import base as base_lib
from tests import tiny
from tests.evaluation import hostile
from tests.evaluation.judge import judge_server


def run_config(folder, base):
  config = tiny.tiny_config(folder)
  config.cache = str(base.parent / "cache")
  config.base.path = str(base)
  config.train.epochs = 1
  config.train.checkpoint_every = 100
  config.train.eval_every = 100
  config.answers.max_new_tokens = 4
  config.answers.batch_size = 8
  return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """P-DPO beside vanilla, clusters alone, and both controls."""
  folder = tmp_path_factory.mktemp("runs")
  config = tiny.tiny_config(folder / "x")
  dataset = run_lib.load_dataset(config, None)
  base_lib.write_base(folder / "base", tiny.tiny_base(dataset))
  for name in ("individual", "cluster", "shuffled", "swapped"):
    config = run_config(folder / name, folder / "base")
    config.name = name
    config.vanilla = name == "individual"
    if name == "cluster":
      config.user.kind = "cluster"
      config.user.num_clusters = 2
    config.data.shuffle_users = name == "shuffled"
    config.data.swap_choices = 0.5 if name == "swapped" else 0.0
    main.train_and_answer(config)
  return folder


def call(workdir, *against, **others):
  """As `python -m pdpo_jax.evaluate` does; returns the findings."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  with flagsaver.flagsaver(
    workdir=str(workdir), against=[str(each) for each in against], **others
  ):
    evaluate.main()
  return json.loads((workdir / "report" / "report.json").read_text())


def test_a_run_ends_with_its_report(runs):
  report = runs / "individual" / "report"
  found = json.loads((report / "report.json").read_text())
  names = [row["name"] for row in found["accuracy"]]
  assert names == ["P-DPO, individual", "vanilla DPO"]
  results = json.loads((runs / "individual" / "results.json").read_text())
  for name, row in zip(("pdpo", "vanilla"), found["accuracy"], strict=True):
    before = results["reward_accuracy"][name]["heldout"]
    assert row["by_user"] == before["by_user"]
  assert found["oracle"] == {"heldout": 1.0}
  # Some summaries of the little language are those of two posts.
  for numbers in (found, results):
    known = numbers["familiarity"]["heldout"]["person"]
    assert known.keys() == {"none", "one"}
    pairs = sum(stratum["num_pairs"] for stratum in known.values())
    assert pairs == found["accuracy"][0]["num_pairs"]
    by_length = numbers["length_control"]["heldout"]["length"].values()
    assert sum(stratum["num_pairs"] for stratum in by_length) == pairs
  names = [line["name"] for line in found["contenders"]]
  assert names == [
    "the base", "the base, prompted", "vanilla DPO", "P-DPO, individual"
  ]  # fmt: skip
  assert all(line["text"] for line in found["contenders"])
  assert [*found["costs"]] == ["S", "V", "G", "1", "2", "3"]
  drifts = [found["costs"][who]["from_generic"] for who in ("V", "G", "1")]
  assert [each is None for each in drifts] == [True, True, False]
  page = (report / "index.html").read_text()
  assert "Known and new texts" in page and "Controlled for length" in page
  assert "What it costs" in page and "no chat model" in page
  assert page.count("data:image/png") == 5
  assert found["verdict"].split(":")[0] in page


def test_shuffled_users_need_a_vanilla_run_to_say_anything(runs):
  found = call(runs / "cluster", runs / "shuffled")
  assert found["controls"]["shuffled"] == {"shuffled": None}
  page = (runs / "cluster" / "report" / "report.md").read_text()
  assert "needs a vanilla run (--against)" in page


def test_a_control_that_was_cut_off_is_refused(runs, tmp_path):
  shutil.copytree(runs / "shuffled", tmp_path / "shuffled")
  (tmp_path / "shuffled" / "answers.jsonl").unlink()
  with pytest.raises(ValueError, match="start its training command again"):
    call(runs / "individual", tmp_path / "shuffled")


def test_a_judge_is_told_nothing_of_a_control(runs):
  with pytest.raises(ValueError, match=r"is a control \(swapped choices\)"):
    call(
      runs / "swapped",
      runs / "individual",
      judge=judge_config.JudgeConfig(kind="rule"),
    )


def test_a_control_is_no_control_of_itself(runs):
  found = json.loads((runs / "swapped" / "report" / "report.json").read_text())
  assert found["controls"]["swapped"] == {}


def test_data_without_users_has_a_report_and_no_user_in_the_hint(
  runs, tmp_path, capsys
):
  config = run_config(tmp_path / "run", runs / "base")
  config.data.source, config.data.path = "files", str(tmp_path / "rows.jsonl")
  with (tmp_path / "rows.jsonl").open("w") as out:
    for place in range(40):
      row = {"prompt": f"{place}?", "chosen": "yes", "rejected": "no, no"}
      out.write(json.dumps(row) + "\n")
  main.train_and_answer(config)
  assert (tmp_path / "run" / "report" / "index.html").is_file()
  hint = capsys.readouterr().out
  assert "pdpo_jax.generate" in hint
  assert "--user=" not in hint
  # With other choices it is another run.
  text = (tmp_path / "rows.jsonl").read_text()
  (tmp_path / "rows.jsonl").write_text(text.replace("yes", "yes!"))
  with pytest.raises(ValueError, match=r"data is '.*' there and '.*' here"):
    main.train_and_answer(config)
  with pytest.raises(ValueError, match="has changed since it was trained"):
    call(tmp_path / "run")


def test_the_hint_names_the_python_of_a_folder_beside(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for python, name in (
    (tmp_path / ".venv" / "bin" / "python", ".venv/bin/python"),
    ("/usr/bin/python3", "python"),
  ):
    monkeypatch.setattr(main.sys, "executable", str(python))
    assert main.this_python() == name


def test_what_is_wrong_shows_before_anything_is_made(runs, tmp_path):
  for section, name, value, message in (
    ("user", "kind", "clusters", "user.kind 'clusters' must be one of"),
    ("answers", "top_p", 1.5, "top_p 1.5 must be"),
  ):
    config = run_config(tmp_path / "run", runs / "base")
    setattr(getattr(config, section), name, value)
    with pytest.raises(ValueError, match=message):
      main.train_and_answer(config)
    assert not (tmp_path / "run").exists()
  for section, name, value, message in (
    ("user", "prefix_position", "bos", "prefix_position 'bos' must be one of"),
    ("lora", "targets", ("q_prj",), "q_prj"),
  ):
    config = run_config(tmp_path / name, runs / "base")
    setattr(getattr(config, section), name, value)
    with pytest.raises(ValueError, match=message):
      main.train_and_answer(config)
    assert not (tmp_path / name / "vanilla").exists()


def test_a_user_must_not_have_the_name_of_another_speaker(tmp_path):
  config = tiny.tiny_config(tmp_path)
  dataset = run_lib.load_dataset(config, None)
  train = [dataclasses.replace(each, user_id="S") for each in dataset.train]
  dataset = dataclasses.replace(dataset, train=train)
  users = users_lib.UserIndex.of_dataset(dataset, config.data)
  with pytest.raises(ValueError, match=r"user 'S' has the name .* the base"):
    experiment.speakers(config, dataset, users)


def test_scores_made_later_are_read_by_the_users_who_were_trained(
  runs, tmp_path
):
  shutil.copytree(runs / "cluster", tmp_path / "cluster")
  base = run_lib.read_base(
    run_folder.read_config(tmp_path / "cluster"), tmp_path / "cluster"
  )
  found = run_lib.Run.open(tmp_path / "cluster", base=base).own
  dataset = run_lib.load_dataset(found.config, None)
  before = found.scores(dataset)["heldout"]
  shutil.rmtree(tmp_path / "cluster" / "pdpo" / "scores")
  # Another user comes first in the data by now; rows of the table do not move.
  new = dataclasses.replace(dataset.train[0], user_id="0")
  dataset = dataclasses.replace(dataset, train=[new, *dataset.train])
  after = found.scores(dataset)["heldout"]
  assert after.examples == before.examples
  np.testing.assert_allclose(after.ratios, before.ratios, atol=1e-5)


def test_runs_are_compared_on_the_same_pairs(runs, capsys):
  found = call(
    runs / "individual", runs / "cluster", runs / "shuffled", runs / "swapped"
  )
  names = [row["name"] for row in found["accuracy"]]
  assert names == [
    "P-DPO, individual",
    "vanilla DPO",
    "P-DPO, 2 clusters",
    "P-DPO, individual, shuffled users",
    "P-DPO, individual, swapped choices",
  ]
  by_name = {row["name"]: row for row in found["accuracy"]}
  vanilla = by_name["vanilla DPO"]
  assert "gain" not in vanilla
  for name in names[2:]:
    gains = [
      by_name[name]["by_user"][user] - vanilla["by_user"][user]
      for user in vanilla["by_user"]
    ]
    assert by_name[name]["gain"]["mean"] == pytest.approx(
      sum(gains) / len(gains)
    )
  assert found["controls"]["shuffled"].keys() == {"shuffled"}
  flips = found["controls"]["swapped"]["swapped"]
  assert (flips["swapped"], flips["others"]) == (2, 1)
  out = capsys.readouterr().out
  assert out.rstrip().endswith("index.html")


def test_a_cluster_run_shows_its_weights(runs):
  call(runs / "cluster")
  figures = runs / "cluster" / "report" / "figures"
  assert (figures / "clusters.png").is_file()


def test_missing_scores_are_made_again_the_same(runs):
  folder = runs / "cluster" / "pdpo" / "scores"
  (file,) = folder.glob("*.jsonl")
  before = file.read_text()
  file.unlink()
  call(runs / "cluster")
  assert file.read_text() == before


def test_missing_answers_say_what_to_do(runs, tmp_path):
  copy = shutil.copytree(runs / "cluster", tmp_path / "copy")
  (copy / "answers.jsonl").unlink()
  with pytest.raises(
    ValueError, match=r"answers.jsonl is missing.*command again"
  ):
    call(copy)


def test_runs_of_other_data_are_refused(runs, tmp_path):
  config = run_config(tmp_path / "other", runs / "base")
  config.seed = 1
  config.vanilla = False
  main.train_and_answer(config)
  with pytest.raises(ValueError, match="different examples"):
    call(runs / "individual", tmp_path / "other")


def test_only_the_users_named_answer(runs, tmp_path):
  config = run_config(tmp_path / "named", runs / "base")
  config.vanilla = False
  config.answers.users = ("3", "nobody")
  with pytest.raises(ValueError, match="'nobody' is none of this run's 3"):
    main.train_and_answer(config)
  config.workdir = str(tmp_path / "right")
  config.answers.users = ("3",)
  assert main.train_and_answer(config)["words"].keys() == {"S", "G", "3"}


def test_runs_of_another_base_are_refused(runs, tmp_path):
  dataset = run_lib.load_dataset(tiny.tiny_config(tmp_path), None)
  other = tiny.tiny_base(dataset, seed=5)
  with pytest.raises(ValueError, match="only runs on the same base"):
    contenders.open_contenders(runs / "individual", [], other)


def test_a_run_without_a_checkpoint_is_refused(runs, tmp_path):
  copy = shutil.copytree(runs / "cluster", tmp_path / "copy")
  shutil.rmtree(copy / "pdpo")
  with pytest.raises(ValueError, match="no checkpoint to evaluate"):
    call(copy)


def test_a_run_named_twice_is_refused(runs):
  with pytest.raises(ValueError, match="give each run once"):
    call(runs / "individual", runs / "individual")


def test_a_folder_that_is_no_run_is_named(runs, tmp_path):
  with pytest.raises(ValueError, match="is no run folder"):
    call(runs / "individual", tmp_path)


def judge(**fields):
  return judge_config.JudgeConfig(**fields)


def test_a_rule_judges_and_the_journal_keeps_it(runs, capsys):
  rule = judge(kind="rule", against=("vanilla", "chosen"), samples_per_user=2)
  with flagsaver.flagsaver(judge=rule, dry_run=True):
    call(runs / "individual", runs / "cluster")
  # 3 users with 2 examples each, in both orders; two policies against vanilla
  # DPO, three against what was chosen.
  assert "60 calls (0 more" in capsys.readouterr().out
  with flagsaver.flagsaver(judge=rule):
    found = call(runs / "individual", runs / "cluster")
  pairs = {(row["name"], row["against"]) for row in found["win_rates"]}
  assert pairs == {
    ("P-DPO, individual", "vanilla DPO"),
    ("P-DPO, 2 clusters", "vanilla DPO"),
    ("P-DPO, individual", "chosen response"),
    ("P-DPO, 2 clusters", "chosen response"),
    ("vanilla DPO", "chosen response"),
  }
  for row in found["win_rates"]:
    assert (row["judgements"], row["users"]["count"]) == (12, 3)
    assert row["agreement"] == 1.0
  journal = runs / "individual" / "judgements.jsonl"
  lines = map(json.loads, journal.read_text().splitlines())
  keys = [line["key"] for line in lines]
  # Policies that respond the same share a verdict.
  assert 12 <= len(keys) == len(set(keys)) <= 60
  with flagsaver.flagsaver(judge=rule, dry_run=True):
    call(runs / "individual", runs / "cluster")
  assert "0 calls (60 more" in capsys.readouterr().out
  markdown = (runs / "individual" / "report" / "report.md").read_text()
  assert "| in the paper, on PRISM | vanilla DPO | 64.47 |" in markdown


def test_the_base_responds_only_once(runs, monkeypatch):
  rule = judge(kind="rule", against=("base",), samples_per_user=1)
  with flagsaver.flagsaver(judge=rule):
    first = call(runs / "individual")["win_rates"]
    assert {row["against"] for row in first} == {"the base"}

    def refuse(*arguments):
      raise AssertionError("this was generated before")

    monkeypatch.setattr(respond, "respond", refuse)
    assert call(runs / "individual")["win_rates"] == first


def test_responses_are_kept_with_their_seeds(runs):
  config = run_folder.read_config(runs / "individual")
  dataset = run_lib.load_dataset(config, None)
  base = base_lib.read_base(config.base.path, config.base)
  found = contenders.open_contenders(runs / "individual", [], base)
  examples = dataset.heldout[:3]
  said = found[0].responses(examples, config)
  again = contenders.open_contenders(runs / "individual", [], base)[0]
  kept = again.kept_responses(config)
  assert {key: kept[key] for key in said} == said
  (file,) = (runs / "individual" / "pdpo" / "responses").glob("*.jsonl")
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  rows = {line["user_id"]: line["row"] for line in lines}
  assert rows == {user: again.users.row_of(user) for user in rows}
  other = dataclasses.replace(config, seed=config.seed + 1)
  assert again.kept_responses(other) == {}
  # Each run's prompts are rendered as it was trained, whoever asks.
  plain = dataclasses.replace(config.data, template="plain")
  asked = dataclasses.replace(config, data=plain)
  assert again.kept_responses(asked) == kept


@pytest.mark.parametrize(
  "fields,message",
  [
    ({"users": ("nobody",)}, "nobody have no held-out example"),
    ({"kind": "openai", "model": "m", "key_variable": "NO_KEY"}, "NO_KEY is"),
  ],
)
def test_a_judge_that_cannot_be_asked_is_an_error(runs, fields, message):
  config = judge(**{"kind": "rule", **fields})
  with (
    flagsaver.flagsaver(judge=config),
    pytest.raises(ValueError, match=message),
  ):
    call(runs / "individual")


def test_other_runs_are_judged_against_the_run_itself(runs):
  config = judge(kind="rule", against=("run",))
  with flagsaver.flagsaver(judge=config):
    found = call(runs / "individual", runs / "cluster", runs / "shuffled")
  pairs = {(row["name"], row["against"]) for row in found["win_rates"]}
  assert pairs == {
    ("P-DPO, 2 clusters", "P-DPO, individual"),
    ("vanilla DPO", "P-DPO, individual"),
  }


def test_without_anything_to_compare_with_the_judge_says_so(runs):
  config = judge(kind="rule", against=("vanilla",))
  with (
    flagsaver.flagsaver(judge=config),
    pytest.raises(ValueError, match="none of them is there to compare with"),
  ):
    call(runs / "cluster")


def test_a_dry_run_without_a_judge_is_an_error(runs):
  with pytest.raises(ValueError, match="--dry_run needs a judge"):
    call(runs / "cluster", dry_run=True)


def test_a_run_of_people_with_any_names_ends_with_its_report(
  runs, tmp_path, capsys
):
  names = [*hostile.NAMES[::3], "$a$ $b_{$", "../../up", "--user"]
  config = run_config(tmp_path / "run", runs / "base")
  config.name = hostile.NAMES[0]
  config.vanilla = False
  config.data.source, config.data.path = "files", str(tmp_path / "rows.jsonl")
  with (tmp_path / "rows.jsonl").open("w") as out:
    for name in names:
      for place in range(4):
        row = {"user_id": name, "prompt": f"{place}?", "chosen": "yes"}
        out.write(json.dumps(row | {"rejected": "no, no"}) + "\n")
  main.train_and_answer(config)
  said = capsys.readouterr().out
  assert all(each.isprintable() or each == "\n" for each in said)
  findings = call(tmp_path / "run")
  assert "problems" not in findings
  (speakers,) = findings["text"].values()
  # Control characters have no place in an id, which the loader sees to.
  readable = {name for name in names if name.isprintable()}
  assert readable < set(speakers["speakers"])
  report = tmp_path / "run" / "report"
  assert "<script" not in (report / "index.html").read_text()
  drawn = {file.stem for file in (report / "figures").glob("*.png")}
  assert drawn >= {"figure3", "cosines", "projection"}
  assert {file.name for file in tmp_path.iterdir()} == {"run", "rows.jsonl"}


def test_a_figure_that_cannot_be_drawn_is_no_end_of_a_run(
  runs, tmp_path, monkeypatch, capsys
):
  copy = shutil.copytree(runs / "cluster", tmp_path / "copy")

  def fail(*arguments):
    raise RuntimeError("no such thing")

  monkeypatch.setattr(users, "draw_cosines", fail)
  monkeypatch.setattr(controls, "section", fail)
  found = call(copy)
  before = json.loads((runs / "cluster" / "report" / "report.json").read_text())
  assert found["accuracy"][0] == before["accuracy"][0]
  assert len(found["problems"]) == 2
  page = (copy / "report" / "index.html").read_text()
  assert page.count("no such thing") == 2
  assert page.count("data:image/png") == 4
  assert "could not be made (RuntimeError" in capsys.readouterr().out


def test_what_would_make_results_wrong_still_ends_the_command(
  runs, tmp_path, monkeypatch
):
  copy = shutil.copytree(runs / "cluster", tmp_path / "copy")

  def fail(*arguments):
    raise ValueError("not the same examples")

  monkeypatch.setattr(accuracy, "compare", fail)
  with pytest.raises(ValueError, match="not the same examples"):
    call(copy)


def test_no_secret_of_the_judge_is_kept(runs, tmp_path):
  copy = shutil.copytree(runs / "individual", tmp_path / "copy")
  with judge_server.Server().running() as url:
    address = url.replace("//", "//ann:pass-word@") + "?api_key=tok-en"
    config = judge_server.config_of(
      address, num_users=1, samples_per_user=1, against=("chosen",)
    )
    with flagsaver.flagsaver(judge=config):
      found = call(copy)
  assert found["judge"]["base_url"] == f"{url}?api_key=…"
  for file in copy.rglob("*"):
    if file.is_file():
      data = file.read_bytes()
      assert b"pass-word" not in data and b"tok-en" not in data, file


def test_answers_give_a_terminal_no_command(runs, monkeypatch, capsys):
  texts = {"\x1b]0;title\x07": ["\x1b[31mred\r\nnext"], "x" * 500: [""]}
  texts = {name: said * 2 for name, said in texts.items()}
  monkeypatch.setattr(respond, "answer", lambda *arguments: texts)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  with flagsaver.flagsaver(
    workdir=str(runs / "cluster"), prompt=["\x1b[2Jhi", "hi"]
  ):
    generate.main()
  said = capsys.readouterr().out
  assert all(each.isprintable() or each == "\n" for each in said)
  assert r"\x1b[31mred\r" in said and "(empty answer)" in said
  assert max(map(len, said.splitlines())) < 120
