import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.core import sections
from pdpo_jax.inference import sampling

NO_STOP = jnp.zeros((0,), jnp.int32)


def logits_of(*rows):
  """Logits whose softmax is `rows`."""
  return jnp.log(jnp.asarray(rows, jnp.float32))


def kept(logits):
  return np.isfinite(np.asarray(logits)).tolist()


def softmax(x):
  weights = np.exp(x - x.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
  logits = jnp.asarray([[4.0, -4.0, 3.0, -3.0]])
  tokens = jnp.asarray([[0, 1, 0, 2]])  # the 2 is not generated yet
  out = sampling.penalize_repetition(logits, tokens, 3, 2.0)
  np.testing.assert_array_equal(out, [[2.0, -8.0, 3.0, -3.0]])


def test_repetition_penalty_of_no_tokens_changes_nothing():
  logits = jnp.asarray([[4.0, -4.0]])
  out = sampling.penalize_repetition(logits, jnp.asarray([[0, 1]]), 0, 2.0)
  np.testing.assert_array_equal(out, logits)


def test_ngrams_ban_what_followed_the_last_tokens_before():
  tokens = jnp.asarray([[5, 6, 7, 5, 6, 0, 0], [5, 6, 7, 6, 5, 0, 0]])
  out = sampling.ban_repeated_ngrams(jnp.zeros((2, 11)), tokens, 5, 3)
  assert np.argwhere(np.isinf(out)).tolist() == [[0, 7]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ngrams_equal_a_dictionary_of_ngrams(size):
  tokens = np.random.default_rng(0).integers(0, 3, (7, 13)).astype(np.int32)
  for count in range(14):
    out = sampling.ban_repeated_ngrams(
      jnp.zeros((7, 5)), jnp.asarray(tokens), count, size
    )
    for row in range(7):
      text = tokens[row, :count].tolist()
      banned = {
        text[i + size - 1]
        for i in range(count - size + 1)
        if text[i : i + size - 1] == text[count - size + 1 :]
      }
      assert set(np.flatnonzero(np.isinf(out[row]))) == banned


def test_ngrams_longer_than_the_answer_ban_nothing():
  out = sampling.ban_repeated_ngrams(
    jnp.zeros((2, 5)), jnp.zeros((2, 3), jnp.int32), 3, 4
  )
  assert np.isfinite(out).all()


def test_stop_tokens_are_banned_until_there_are_min_new_tokens():
  stops = jnp.asarray([1, 3])
  early = sampling.ban_early_stop(jnp.zeros((1, 5)), stops, 1, 2)
  assert kept(early) == [[True, False, True, False, True]]
  assert all(kept(sampling.ban_early_stop(jnp.zeros((1, 5)), stops, 2, 2))[0])


def test_top_k_keeps_the_k_likeliest_and_ties():
  logits = jnp.asarray([[1.0, 4.0, 3.0, 2.0], [1.0, 2.0, 2.0, 2.0]])
  assert kept(sampling.keep_top_k(logits, 2)) == [
    [False, True, True, False],
    [False, True, True, True],
  ]
  assert all(np.ravel(kept(sampling.keep_top_k(logits, 9))))


def test_top_p_keeps_the_token_that_crosses_it():
  logits = logits_of([0.1, 0.5, 0.15, 0.25])
  for top_p, expected in (
    (0.4, [False, True, False, False]),
    (0.6, [False, True, False, True]),
    (0.8, [False, True, True, True]),
    (0.95, [True, True, True, True]),
  ):
    assert kept(sampling.keep_top_p(logits, top_p)) == [expected]


@pytest.mark.parametrize("top_p", [1e-30, 0.1, 0.5, 0.9, 0.999])
def test_top_p_equals_a_sort(top_p):
  logits = 3 * np.random.default_rng(0).normal(size=(17, 211))
  logits = logits.astype(np.float32)
  logits[:, :50] = -np.inf  # as after top-k
  order = np.argsort(logits, -1)
  tail = np.take_along_axis(softmax(logits.astype(np.float64)), order, -1)
  goes = tail.cumsum(-1) <= 1 - top_p
  goes[:, -1] = False
  expected = np.zeros_like(goes)
  np.put_along_axis(expected, order, ~goes, -1)
  assert kept(sampling.keep_top_p(jnp.asarray(logits), top_p)) == (
    expected.tolist()
  )


@pytest.mark.parametrize("top_p", [1e-30, 1e-6, 0.3])
def test_top_p_keeps_at_least_one_token(top_p):
  logits = jnp.asarray([[0.0, 50.0, 1.0], [-200.0, -300.0, -400.0]])
  assert kept(sampling.keep_top_p(logits, top_p)) == [
    [False, True, False],
    [True, False, False],
  ]


def test_temperature_comes_before_top_p():
  logits = logits_of([0.1, 0.3, 0.6])
  spec = sampling.AnswersConfig(temperature=0.25, top_p=0.9)
  tokens = jnp.zeros((1, 1), jnp.int32)
  out = sampling.filter_logits(logits, tokens, 0, NO_STOP, spec)
  # Fourth powers: 1 : 81 : 1296, of which 1296 alone is more than 0.9.
  assert kept(out) == [[False, False, True]]


def test_penalty_comes_before_top_k():
  spec = sampling.AnswersConfig(repetition_penalty=4.0, top_k=1)
  logits = jnp.asarray([[2.0, 3.0, 1.0]])
  out = sampling.filter_logits(logits, jnp.asarray([[1]]), 1, NO_STOP, spec)
  assert kept(out) == [[True, False, False]]


def test_penalties_may_count_the_prompt_as_if_it_were_generated():
  rng = np.random.default_rng(2)
  prompt = jnp.asarray(rng.integers(0, 4, (5, 7)))
  tokens = jnp.asarray(rng.integers(0, 4, (5, 6)))
  logits = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
  spec = sampling.AnswersConfig(repetition_penalty=1.5, no_repeat_ngram=3)
  both = dataclasses.replace(spec, penalize_prompt=True)
  # Padding has an id that is in no vocabulary, and counts for nothing.
  padded = jnp.concatenate([jnp.full((5, 3), 6), prompt], 1)
  whole = jnp.concatenate([prompt, tokens], 1)
  for count in range(6):
    arguments = logits, tokens, count, NO_STOP
    expected = sampling.filter_logits(logits, whole, 7 + count, NO_STOP, spec)
    found = sampling.filter_logits(*arguments, both, padded)
    np.testing.assert_array_equal(found, expected)
    alone = sampling.filter_logits(*arguments, spec, padded)
    assert (np.asarray(alone) != np.asarray(expected)).any()


def test_filters_that_are_off_leave_logits_alone():
  logits = jnp.asarray([[2.0, 3.0, 1.0]])
  out = sampling.filter_logits(
    logits, jnp.asarray([[1]]), 1, NO_STOP, sampling.AnswersConfig()
  )
  np.testing.assert_array_equal(out, logits)


def test_temperature_zero_is_argmax():
  logits = jax.random.normal(jax.random.key(0), (5, 31))
  spec = sampling.AnswersConfig(temperature=0.0, top_k=3, top_p=0.5)
  keys = sampling.row_keys(jnp.arange(5, dtype=jnp.uint32))
  tokens = jnp.zeros((5, 1), jnp.int32)
  out = sampling.filter_logits(logits, tokens, 0, NO_STOP, spec)
  chosen = sampling.choose(out, keys, 0, spec)
  np.testing.assert_array_equal(chosen, np.argmax(logits, -1))


def test_tokens_are_drawn_with_their_probabilities():
  rows = 20_000
  probabilities = np.asarray([0.5, 0.0, 0.2, 0.3])
  with np.errstate(divide="ignore"):
    logits = jnp.asarray(np.log(probabilities), jnp.float32)
  chosen = sampling.choose(
    jnp.tile(logits, (rows, 1)),
    sampling.row_keys(jnp.arange(rows, dtype=jnp.uint32)),
    3,
    sampling.AnswersConfig(),
  )
  shares = np.bincount(chosen, minlength=4) / rows
  assert shares[1] == 0
  # Standard deviation of a share is at most sqrt(0.25 / 20000) = 0.0035.
  np.testing.assert_allclose(shares, probabilities, atol=0.015)


def test_rows_draw_from_their_seed_and_place_alone():
  spec = sampling.AnswersConfig()
  keys = sampling.row_keys(jnp.asarray([7, 7, 8], jnp.uint32))
  draws = [
    np.asarray(sampling.choose(jnp.zeros((3, 9999)), keys, count, spec))
    for count in range(2)
  ]
  alone = sampling.choose(jnp.zeros((1, 9999)), keys[2:], 1, spec)
  assert draws[0][0] == draws[0][1] != draws[0][2]
  assert draws[0][0] != draws[1][0]
  assert draws[1][2] == alone[0]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("max_new_tokens", -1),
    ("min_new_tokens", 9),
    ("temperature", -0.5),
    ("temperature", float("nan")),
    ("top_k", -1),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("repetition_penalty", 0.0),
    ("no_repeat_ngram", -2),
  ],
)
def test_a_spec_names_its_bad_field(field, value):
  with pytest.raises(ValueError, match=f"{field} {value}"):
    sections.check(
      sampling.AnswersConfig(**{"max_new_tokens": 8, field: value}), "answers."
    )


def test_rows_may_have_each_its_own_top_k_and_top_p():
  logits = jax.random.normal(jax.random.key(0), (7, 31))
  logits = logits.at[:, 4].set(logits[:, 9])  # A tie.
  logits = logits.at[0, 3].set(-jnp.inf).at[1, 3].set(-0.0).at[1, 5].set(0.0)
  ks = [1, 5, 31, 99, 0, 17, 2]
  found = sampling.keep_top_k_by_row(logits, jnp.asarray(ks))
  for row, k in enumerate(ks):
    one = logits[row : row + 1]
    expected = sampling.keep_top_k(one, k) if k else one
    np.testing.assert_array_equal(found[row], expected[0])
  ps = [0.1, 0.5, 0.9, 1.0, 0.999, 0.7, 0.3]
  found = sampling.keep_top_p(logits, jnp.asarray(ps))
  for row, p in enumerate(ps):
    one = logits[row : row + 1]
    expected = sampling.keep_top_p(one, p) if p < 1 else one
    np.testing.assert_array_equal(found[row], expected[0])
