"""Contenders at a glance, from accuracies and texts that are known."""

import numpy as np
import pytest

from pdpo_jax.evaluation import accuracy, untrained
from pdpo_jax.evaluation.report import accuracy as report_accuracy
from pdpo_jax.evaluation.report import contenders
from pdpo_jax.inference import text_health

OURS, VANILLA = "P-DPO, individual", "vanilla DPO"
USERS = ["ann", "bob"]


def of(*ratios):
  return accuracy.reward_accuracy(np.array(ratios, float)[:, None], USERS)


def glance(said, groups=None):
  scored = [
    report_accuracy.Scored(name, "heldout", 2, found, {}, None)
    for name, found in ((OURS, of(1, 1)), (VANILLA, of(1, -1)))
  ]
  findings = report_accuracy.Findings(scored, OURS, VANILLA, {})
  of_base = {
    untrained.BASE: {"heldout": of(-1, -1)},
    untrained.PROMPTED: {"heldout": of(-1, 1)},
  }
  return contenders.at_a_glance(
    OURS, [OURS, VANILLA], findings, of_base, said, groups or {}, None
  )


def text(*answers):
  health = text_health.Health(-0.5, 1.0, 0.0, 0.25, 0.25, 0.125, 0.0)
  return contenders.Text(dict(zip(USERS, answers, strict=True)), health)


def test_every_contender_has_a_line_the_run_last():
  table, lines = glance({})
  names = [untrained.BASE, untrained.PROMPTED, VANILLA, OURS]
  assert [line[0] for line in table.lines] == names
  assert [line["accuracy"] for line in lines] == [0, 0.5, 0.5, 1]
  assert table.columns == ("contender", "accuracy, mean over seen users")


def test_text_is_compared_where_it_is_known():
  said = {
    untrained.BASE: text(["a b c"], ["a b c"]),
    OURS: text([""], ["d e f g"]),
  }
  groups = {"minority (short)": ["ann"], "majority (long)": ["bob"]}
  table, lines = glance(said, groups)
  assert table.columns[-2:] == (
    "words, minority (short)",
    "words, majority (long)",
  )
  base, prompted, _, ours = table.lines
  assert base[2:] == ("-0.50", "12.5", "100.0", "25.0", "0.00", "3.0", "3.0")
  assert set(prompted[2:]) == {"–"}
  assert ours[-3:] == ("1.00", "0.0", "4.0")
  assert lines[0]["text"]["broken"] == 0.25
  assert lines[-1]["distance"] == pytest.approx(1.0)
  assert "2 people and the same 1 held-out prompts" in table.note
