"""The judge's knobs: each is read somewhere, and wrong values are named."""

import dataclasses
import pathlib
import re

import pytest

from pdpo_jax.config import judge as judge_config

PACKAGE = pathlib.Path(__file__).parent.parent / "pdpo_jax"


@pytest.mark.parametrize(
  "name", [each.name for each in dataclasses.fields(judge_config.JudgeConfig)]
)
def test_every_knob_is_read_somewhere(name):
  texts = [
    file.read_text()
    for file in PACKAGE.rglob("*.py")
    if file.parent.name != "config"
  ]
  assert any(re.search(rf"(config|judge)\.{name}\b", text) for text in texts)


@pytest.mark.parametrize(
  "fields,message",
  [
    ({"kind": "gpt"}, "judge.kind 'gpt' must be one of"),
    ({"order": "first"}, "judge.order 'first' must be one of"),
    ({"kind": "openai"}, "needs --judge.model"),
    ({"kind": "local"}, "needs --judge.model"),
    ({"kind": "rule", "base_url": "http://x"}, "is for --judge.kind=openai"),
    ({"against": ("gpt",)}, "judge.against .* must be some of"),
    ({"against": ()}, "judge.against .* must be some of"),
    ({"temperature": -1.0}, "judge.temperature -1.0 must be 0 or more"),
    ({"timeout": 0.0}, "judge.timeout 0.0 must be above 0"),
    ({"concurrency": 0}, "judge.concurrency 0 must be 1 or more"),
    ({"user_template": "no/such"}, "there is no file 'no/such'"),
    ({"num_users": "ten"}, "judge.num_users 'ten' must be of type int"),
  ],
)
def test_wrong_values_are_named(fields, message):
  config = judge_config.JudgeConfig()
  for name, value in fields.items():
    setattr(config, name, value)
  with pytest.raises(ValueError, match=message):
    judge_config.validate(config)


def test_the_defaults_are_valid():
  judge_config.validate(judge_config.JudgeConfig())
  judge_config.validate(judge_config.JudgeConfig(kind="openai", model="m"))
