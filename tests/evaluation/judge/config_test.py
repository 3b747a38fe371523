"""The judge's knobs: each is read somewhere, and wrong values are named."""

import dataclasses
import pathlib
import re

import pytest

from pdpo_jax.core import sections
from pdpo_jax.evaluation.judge import config as judge_config

PACKAGE = pathlib.Path(__file__).parents[3] / "pdpo_jax"


@pytest.mark.parametrize(
  "name", [each.name for each in dataclasses.fields(judge_config.JudgeConfig)]
)
def test_every_knob_is_read_somewhere(name):
  texts = [
    file.read_text()
    for file in PACKAGE.rglob("*.py")
    if file.name != "config.py"
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
    sections.check(config, "judge.")


@pytest.mark.parametrize(
  "address,public",
  [
    ("", ""),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ("https://ann:pw@host:1/v1", "https://host:1/v1"),
    ("https://pw@host/v1", "https://host/v1"),
    ("https://ann:p@w@host/v1", "https://host/v1"),
    ("https://host/v1?api_key=pw", "https://host/v1?api_key=…"),
    ("https://host/v1?pw", "https://host/v1?…"),
    ("https://host/v1?k=pw&api-version=1", "https://host/v1?k=…&api-version=1"),
    ("https://host/v1?k=a&k=pw;c", "https://host/v1?k=…&k=…"),
    ("https://host/v1#pw", "https://host/v1"),
  ],
)
def test_an_address_is_shown_without_secrets(address, public):
  judge = judge_config.JudgeConfig(kind="openai", model="m", base_url=address)
  sections.check(judge, "judge.")
  assert judge_config.described(judge)["base_url"] == public
  assert judge.base_url == address


@pytest.mark.parametrize(
  "address",
  [
    "ann:pw@host/v1",
    "https://ann:p/pw@host/v1",
    "https://ann:p#pw@host/v1",
    "https://ann:p?pw@host/v1",
    "http://[pw",
    "http://host:pw/v1",
    "pw",
    "ftp://ann:pw@host",
    "https://ann:pw@/v1",
  ],
)
@pytest.mark.parametrize("kind", ["openai", "rule"])
def test_what_is_no_address_is_an_error_that_does_not_show_it(address, kind):
  judge = judge_config.JudgeConfig(kind=kind, model="m", base_url=address)
  with pytest.raises(ValueError, match=r"judge\.base_url \(not shown") as error:
    sections.check(judge, "judge.")
  assert "pw" not in str(error.value)


@pytest.mark.parametrize("name", ["sk-abc123", "hf_AbCd", "", "A B"])
def test_a_key_in_place_of_its_variable_is_not_shown(name):
  judge = judge_config.JudgeConfig(kind="openai", model="m", key_variable=name)
  with pytest.raises(ValueError, match="must be the name of an env") as error:
    sections.check(judge, "judge.")
  assert not name or name not in str(error.value)


def test_the_defaults_are_valid():
  sections.check(judge_config.JudgeConfig(), "judge.")
  sections.check(judge_config.JudgeConfig(kind="openai", model="m"), "judge.")
