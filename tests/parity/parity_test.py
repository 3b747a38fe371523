"""Golden files against torch, and `pdpo_jax` against torch, both live.

Run by `make parity`, which has its own requirements; the plain suite compares
`pdpo_jax` with the golden files and needs no torch.
"""

import functools

import numpy as np
import pytest

from tests import golden_cases
from tests.parity import torch_models, torch_reference

# transformers 5.x announces a renamed attribute of its own on every model.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.*is_gradient_checkpointing:FutureWarning"
)
# Another seed than the golden files', so that nothing rests on their numbers.
FRESH_SEED = 1

models = pytest.mark.parametrize("name", golden_cases.MODELS)
cases = pytest.mark.parametrize(("name", "case"), golden_cases.CASES)


@functools.cache
def compute(name, seed):
  return torch_reference.compute(name, seed)


def report(record_property, label, value):
  record_property(label, value)
  print(f"{label}: {value:.2g}")


def test_both_sides_mean_the_same_settings():
  ours = set(golden_cases.CASES)
  theirs = {
    (name, case)
    for name, group in torch_reference.CASES.items()
    for case in group
  }
  assert ours == theirs
  for name in ("RANK", "LORA_ALPHA", "BETA", "ALPHA", "SMOOTHING"):
    assert getattr(golden_cases, name) == getattr(torch_reference, name)


@models
def test_golden_file_agrees_with_torch(name):
  golden, live = golden_cases.read(name), compute(name, 0)
  assert golden.keys() == live.keys()
  for key, value in golden.items():
    if key == "config":
      assert golden_cases.architecture(golden) == golden_cases.architecture(
        live
      )
      continue
    assert value.dtype == live[key].dtype, key
    # Inputs are bitwise equal; results differ by the order of sums between
    # processors and versions of torch, relative to the largest entry.
    scale = np.abs(value).max() if value.dtype.kind == "f" else 0.0
    np.testing.assert_allclose(
      live[key], value, rtol=0, atol=2e-5 * scale, err_msg=key
    )


@models
def test_greedy_answers_are_those_of_plain_forward_passes(name):
  for seed in (0, FRESH_SEED):
    rng = np.random.default_rng([seed, *name.encode()])
    model = torch_models.make_model(name, rng)
    arrays = compute(name, seed)
    tokens, closest = torch_models.greedy_by_hand(model, arrays)
    np.testing.assert_array_equal(tokens, arrays["greedy/tokens"])
    # A hundred times the difference that rounding makes in a logit.
    assert closest > 1e-3


@models
def test_logits_equal_those_of_transformers(name, record_property):
  arrays = compute(name, FRESH_SEED)
  ours = golden_cases.logits(arrays)
  difference = np.abs(ours - arrays["logits/out"]).max()
  report(record_property, f"{name} logits, largest difference", difference)
  assert difference < 1e-4


@cases
def test_objective_equals_four_passes_with_peft(name, case, record_property):
  arrays = compute(name, FRESH_SEED)
  loss, _, gradients = golden_cases.loss_and_gradients(arrays, name, case)
  difference = abs(loss - arrays[f"{case}/loss/sigmoid"])
  report(record_property, f"{name} {case} loss difference", difference)
  assert difference < 1e-5
  expected = golden_cases.section(arrays, f"{case}/gradients")
  assert gradients.keys() == expected.keys()
  worst = max(
    golden_cases.relative_difference(gradients[key], value)
    for key, value in expected.items()
  )
  report(record_property, f"{name} {case} gradients, relative", worst)
  assert worst < 1e-4


@cases
def test_every_loss_equals_its_formula_in_torch(name, case):
  arrays = compute(name, FRESH_SEED)
  expected = golden_cases.section(arrays, f"{case}/loss")
  ours = golden_cases.all_losses(arrays, case)
  assert ours.keys() == expected.keys()
  for kind, value in expected.items():
    # IPO squares nats, so its rounding is relative to a value of about 50.
    assert ours[kind] == pytest.approx(float(value), abs=1e-5, rel=1e-5), kind
