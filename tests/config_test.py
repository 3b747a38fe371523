import ast
import dataclasses
import functools
import importlib.util
import operator
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from pdpo_jax import command_line  # noqa: F401
from pdpo_jax.core import sections
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent


def set_field(config, path, value):
  *sections, name = path.split(".")
  for section in sections:
    config = getattr(config, section)
  setattr(config, name, value)


@pytest.mark.parametrize(
  ("path", "near"),
  [
    ("loss.bta", "config.loss has no field 'bta'; did you mean 'beta'"),
    ("los.beta", "did you mean 'loss'"),
    ("train.zzz", "config.train has no field 'zzz'; it has start_from"),
    ("loss.beta.x", "'beta' has no fields"),
  ],
)
def test_an_unknown_field_is_an_error_that_names_the_near_ones(path, near):
  with pytest.raises(ValueError, match=re.escape(near)):
    sections.check_field(config_lib.Config(), "config", path)


def test_a_known_field_passes():
  sections.check_field(config_lib.Config(), "config", "loss.beta")
  sections.check_field(config_lib.Config(), "config", "user")


def test_a_wrong_variant_is_one_line_that_names_those_there_are():
  command = [sys.executable, "-m", "pdpo_jax.main"]
  done = subprocess.run(
    [*command, "--config=configs/prism.py:cluster50"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert (
    done.stderr.strip()
    .splitlines()[-1]
    .startswith(
      "error: configs/prism.py has no variant 'cluster50'; it has 'individual'"
    )
  )
  assert "Traceback" not in done.stderr


def test_a_config_file_cannot_set_an_unknown_field():
  config = config_lib.Config()
  with pytest.raises(AttributeError, match="did you mean 'learning_rate'"):
    config.train.lerning_rate = 1.0


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("loss.alpha", 1.5, "loss.alpha 1.5 must be from 0 to 1"),
    ("loss.alpha", -0.1, "loss.alpha"),
    ("loss.beta", 0.0, "loss.beta 0.0 must be above 0"),
    ("loss.beta", "much", "loss.beta 'much' must be of type float"),
    ("loss.kind", "dpo", "loss.kind 'dpo' must be one of"),
    ("loss.label_smoothing", 0.5, "loss.label_smoothing"),
    ("user.num_tokens", 0, "user.num_tokens 0 leaves"),
    ("train.epochs", 1.5, "train.epochs 1.5 must be of type int"),
    ("train.epochs", 0, "train.epochs 0 must be 1 or more"),
    ("train.accumulation_steps", 5, "32 is not divisible by"),
    ("train.learning_rate", 0.0, "train.learning_rate"),
    ("train.clip_norm", -1.0, "train.clip_norm"),
    ("loss.chosen_nll", -1.0, "loss.chosen_nll -1.0 must be 0 or more"),
    ("sft.learning_rate", -1.0, "sft.learning_rate -1.0 must be 0 or more"),
    ("lora.dropout", 1.0, "lora.dropout"),
    ("lora.rank", 0, "lora.rank"),
    ("lora.targets", (1.5,), "lora.targets (1.5,) must be a tuple of str"),
    ("answers.users", True, "answers.users True must be a tuple of str"),
    ("base.dtype", "float16", "base.dtype 'float16' must be one of"),
    ("base.remat", "some", "base.remat"),
    ("data.source", "prsm", "data.source"),
    ("data.synthetic.short_workers", ("11",), "data.synthetic.short_workers"),
    ("name", " ", "name"),
    ("seed", -1, "seed"),
    ("answers.num_prompts", 0, "answers.num_prompts"),
  ],
)
def test_values_out_of_range_are_named(path, value, message):
  config = config_lib.Config()
  set_field(config, path, value)
  with pytest.raises(ValueError, match=re.escape(message)):
    config_lib.validate(config)


def test_smoothing_without_meaning_is_an_error():
  config = config_lib.Config()
  config.loss.kind = "ipo"
  config.loss.label_smoothing = 0.1
  with pytest.raises(ValueError, match="has no meaning for"):
    config_lib.validate(config)


def test_nothing_to_train_is_an_error():
  config = config_lib.Config()
  config.user.kind = "none"
  config.lora.targets = ()
  with pytest.raises(ValueError, match="leave nothing to train"):
    config_lib.validate(config)


def test_vanilla_dpo_without_anything_to_train_is_an_error():
  config = config_lib.Config()
  config.lora.targets = ()
  with pytest.raises(ValueError, match=r"--config\.vanilla=False"):
    config_lib.validate(config)
  config.vanilla = False
  config_lib.validate(config)


def test_a_run_folder_may_lie_at_home():
  config = config_lib.Config(workdir="~/runs/x")
  assert config.folder == pathlib.Path.home() / "runs" / "x"


def test_integers_and_lists_are_taken_for_floats_and_tuples():
  config = config_lib.Config()
  config.loss.beta = 1
  config.lora.targets = ["q_proj"]
  config_lib.validate(config)
  assert type(config.loss.beta) is float
  assert config.lora.targets == ("q_proj",)


@pytest.mark.parametrize(
  ("given", "users"),
  [
    (4, ("4",)),
    ((4, 5), ("4", "5")),
    (["ann,bob"], ("ann", "bob")),
    (["ann, bob"], ("ann", "bob")),
  ],
)
def test_ids_that_a_command_line_makes_numbers_of_are_text(given, users):
  config = config_lib.Config()
  config.answers.users = given
  config_lib.validate(config)
  assert config.answers.users == users


def test_files_hold_something_out():
  config = config_lib.Config()
  config.base.path = "base"
  config.data.source, config.data.path = "files", "choices.jsonl"
  config.data.files.heldout_share = 0.0
  with pytest.raises(ValueError, match=r"heldout_share 0\.0 must be above"):
    config_lib.validate(config)
  config.data.files.heldout_path = "heldout.jsonl"
  config_lib.validate(config)


def test_json_brings_the_same_config_back():
  config = config_lib.Config(name="other", seed=3)
  config.lora.targets = ("q_proj", "v_proj")
  assert config_lib.Config.from_json(config.to_json()) == config


def config_files():
  return sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", config_files(), ids=lambda file: file.stem)
def test_every_config_file_is_valid(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  variants = re.findall(r"`:(\w+)`", module.__doc__)
  for variant in variants:
    config_lib.validate(module.get_config(variant))
  config_lib.validate(module.get_config())
  assert f"--config=configs/{file.name}" in module.__doc__
  with pytest.raises(ValueError, match="no variant"):
    module.get_config("nonsense")


def fields(section, path=""):
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      yield from fields(value, f"{path}{field.name}.")
    else:
      yield path + field.name


@pytest.mark.parametrize(
  "section", [config_lib.Config(), judge_config.JudgeConfig()]
)
def test_every_knob_is_set_by_a_flag(section):
  before = {
    path: operator.attrgetter(path)(section) for path in fields(section)
  }
  arguments = [
    f"--it.{path}={value}"
    for path, value in before.items()
    if not isinstance(value, tuple)
  ]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dataclass(
    "it", section, flag_values=values, sys_argv=["tests", *arguments]
  )
  values(["tests", *arguments])
  for path, value in before.items():
    now = operator.attrgetter(path)(values.it)
    assert (now, type(now)) == (value, type(value)), path


# What a section is called where it is read, besides its own name.
CALLED = {
  "answers": ("spec",),
  "community_alignment": ("config", "_config"),
  "config": ("Config",),
  "lora": ("LoraConfig",),
  "loss": ("objective",),
  "mesh": ("config",),
  "prism": ("config",),
  "ratings": ("options",),
  "synthetic": ("data",),
  "train": ("train_config", "cadence"),
  "user": ("spec",),
}


class Reads(ast.NodeVisitor):
  """Pairs of names `x.y` that code reads, but to check them."""

  def __init__(self):
    self.found = set()
    self.owner = "self"

  def visit_ClassDef(self, node):
    before, self.owner = self.owner, node.name
    self.generic_visit(node)
    self.owner = before

  def visit_FunctionDef(self, node):
    if not node.name.lstrip("_").startswith(("check", "validate")):
      self.generic_visit(node)

  def visit_Attribute(self, node):
    owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
    self.found.add((self.owner if owner == "self" else owner, node.attr))
    self.generic_visit(node)


@functools.cache
def reads():
  visitor = Reads()
  for file in (ROOT / "pdpo_jax").rglob("*.py"):
    visitor.visit(ast.parse(file.read_text()))
  return visitor.found


@pytest.mark.parametrize("path", list(fields(config_lib.Config())))
def test_every_knob_is_read_somewhere(path):
  section, _, name = f"config.{path}".rpartition(".")
  section = section.rpartition(".")[2]
  names = (section, *CALLED.get(section, ()))
  assert any((each, name) in reads() for each in names)
