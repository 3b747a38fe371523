import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import policy
from tests.inference import tiny

SPEC = sampling.AnswersConfig(max_new_tokens=5)


def request(length=4, **fields):
  return generate.Request(np.arange(length, dtype=np.int32), **fields)


def run(model, requests, spec=SPEC, stop_tokens=(), pad_id=0, batch_size=8):
  return generate.generate(
    model,
    requests,
    spec,
    stop_tokens=stop_tokens,
    pad_id=pad_id,
    batch_size=batch_size,
  )


@pytest.fixture
def traces(monkeypatch):
  """Grows by one entry with each trace of the decoder."""
  seen = []
  embed = policy.Policy.prompt_embeddings

  def counted(self, prompt, *args):
    seen.append(prompt.shape)
    return embed(self, prompt, *args)

  monkeypatch.setattr(policy.Policy, "prompt_embeddings", counted)
  jax.clear_caches()
  return seen


def test_no_requests_have_no_answers():
  assert run(tiny.make_policy("gptj-tiny"), []) == []


def test_answers_are_arrays_of_their_own():
  first, second = run(tiny.make_policy("gptj-tiny"), [request()] * 2)
  assert first.dtype == np.int32
  assert first.shape == (5,)
  assert first.base is None
  assert not np.shares_memory(first, second)


def test_a_shape_is_traced_once_and_weights_are_no_constants(traces):
  requests = [request(length, seed=length) for length in (9, 3, 12)]
  one = run(tiny.make_policy("gptj-tiny"), requests)
  again = run(tiny.make_policy("gptj-tiny"), requests)
  other = run(tiny.make_policy("gptj-tiny", seed=5), requests)
  assert traces == [(8, 16)]
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one, other)


def test_prompts_are_run_with_others_of_their_length(traces):
  lengths = [3, 60, 5, 61, 4, 62, 20, 21]
  run(
    tiny.make_policy("gptj-tiny"),
    [request(length) for length in lengths],
    batch_size=2,
  )
  # Longest first: 62 and 61, 60 and 21, 20 and 5, 4 and 3.
  assert traces == [(2, 64), (2, 24), (2, 16)]


def test_batches_are_even():
  assert generate.rows_per_batch(65, 64) == 40
  assert generate.rows_per_batch(64, 64) == 64
  assert generate.rows_per_batch(650, 64) == 64
  assert generate.rows_per_batch(1, 64) == 8
  assert generate.rows_per_batch(5, 3) == 3


def test_positions_end_at_the_architectures_limit():
  # 3 user tokens, 120 of the prompt and 5 new ones fill 128 positions.
  model = tiny.make_policy("gptj-tiny")
  long = generate.Request(np.ones(120, np.int32))
  assert run(model, [long])[0].shape == (5,)
  with pytest.raises(ValueError, match=r"request 1 needs 129 positions.* 128"):
    longer = dataclasses.replace(long, prompt=np.ones(121, np.int32))
    run(model, [request(), longer])


@pytest.mark.parametrize("kind", ["individual", "cluster", "none"])
@pytest.mark.parametrize("row", [-1, tiny.NUM_ROWS])
def test_a_user_row_outside_the_table_is_an_error(kind, row):
  model = tiny.make_policy("gptj-tiny", kind)
  assert model.user_model.num_rows == tiny.NUM_ROWS
  assert model.user_model.num_tokens == model.user_model.generic().shape[0]
  with pytest.raises(ValueError, match=rf"user_row {row} of request 1"):
    run(model, [request(user_row=tiny.NUM_ROWS - 1), request(user_row=row)])


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    (request(0), "prompt of request 1 is empty"),
    (generate.Request(np.ones(3)), "type float64"),
    (generate.Request(np.ones((1, 3), np.int32)), r"shape \(1, 3\)"),
    (generate.Request(np.asarray([4, 101])), "request 1: prompt token 101"),
    (generate.Request(np.asarray([4, -1])), "request 1: prompt token -1"),
    (request(seed=-1), "seed -1 of request 1"),
    (request(seed=2**32), "seed 4294967296 of request 1"),
  ],
)
def test_a_bad_request_is_named(bad, message):
  with pytest.raises(ValueError, match=message):
    run(tiny.make_policy("gptj-tiny"), [request(), bad])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"stop_tokens": [3, 101]}, "stop token 101 is not in the vocabulary"),
    ({"pad_id": -1}, "pad_id -1 is not in the vocabulary"),
    ({"batch_size": 0}, "batch_size 0 must be 1 or more"),
  ],
)
def test_a_bad_argument_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    run(tiny.make_policy("gptj-tiny"), [request()], **arguments)


def test_a_policy_is_left_as_it_was():
  model = tiny.make_policy("llama-tiny")
  before = jax.tree.map(np.asarray, nnx.state(model))
  run(model, [request()])
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
