import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.training import calibration, losses, policies, posterior
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import people as people_lib
from tests import loading, tiny

KINDS = ("individual", "cluster")
NORMALIZED = {"length_normalized": True}
# So that margins of an untrained model, which hardly looks at its prefix, are
# as large as those of a trained one.
BETA, SPREAD = 200.0, 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("people")


@functools.cache
def make_parts(kind, folder, **loss):
  """A learner of random users, and choices of three people."""
  config = tiny.tiny_config(folder)
  config.user.kind = kind
  config.user.num_clusters = 2
  config.user.init_std = SPREAD
  config.loss.beta = BETA
  for name, value in loss.items():
    setattr(config.loss, name, value)
  dataset = loading.load(config)
  base = tiny.tiny_base(dataset)
  policy = policies.make_policy(config.recipe, base, 5)
  learner = people_lib.Learner(config.recipe, base, policy)
  return learner, learner.prepare(dataset.train[:15]), dataset, policy, base


@pytest.fixture(params=KINDS)
def parts(request, folder):
  return make_parts(request.param, folder)


def of_user(choices, user_id):
  return [choice for choice in choices if choice.user_id == user_id]


def make_log_posterior(learner, policy, choices, group):
  """By the objective's own functions, padded in another way; differentiable."""
  population = learner.population
  examples = [choice.example for choice in choices]
  logps = np.array([choice.reference_logps for choice in choices])
  prompt = max(len(x.prompt) for x in examples)
  response = max(len(y) for x in examples for y in x.responses)
  batch = batching.make_batch(
    examples, logps, [[n] for n in range(len(examples))], (prompt, 2, response)
  )
  batch = jax.tree.map(jnp.asarray, batch)

  @jax.jit
  def log_posterior(z):
    row = population.means[group] + z @ population.directions
    rows = jnp.tile(row, (len(choices), 1)).reshape(-1, *population.shape)
    merged = policy.merge()
    logps = objective_lib.response_logps(
      merged, batch, merged.user_model.prefixes(rows), 1024
    )
    ratios = losses.differences(logps - batch.reference_logps)
    prior = -0.5 * jnp.square(z).sum()
    return prior - losses.sigmoid(ratios, BETA, 0.0).sum()

  return log_posterior


def test_the_gradient_is_that_of_the_log_posterior(parts):
  learner, prepared, _, policy, _ = parts
  mine = of_user(prepared.choices, "1")[:3]
  z = np.linspace(-0.5, 0.7, learner.population.size)
  group = learner.population.groups - 1
  margins, gradients = learner.margins(
    mine, np.full(3, group), np.tile(z, (3, 1))
  )
  found = -z + posterior.rise(margins, 0.0) @ gradients
  log_posterior = make_log_posterior(learner, policy, mine, group)
  expected = jax.grad(log_posterior)(jnp.asarray(z, jnp.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_learning_ends_at_the_top_of_the_log_posterior(parts):
  learner, prepared, _, policy, _ = parts
  mine = of_user(prepared.choices, "1")
  person = learner.learn(mine)["1"]
  group, z = person.group, person.z[person.group]
  value = make_log_posterior(learner, policy, mine, group)
  best = float(value(jnp.asarray(z, jnp.float32)))
  assert person.converged
  assert best >= float(value(jnp.zeros(len(z))))
  rng = np.random.default_rng(0)
  for step in rng.normal(size=(8, len(z))) * 0.3:
    found = float(value(jnp.asarray(z + step, jnp.float32)))
    assert found < best + 2 * posterior.TOLERANCE
  np.testing.assert_allclose(
    person.row, learner.population.row(group, z), rtol=1e-6
  )


def token_logps(policy, batch, row):
  """`log pi(v | x, y_<t, row)` of the first response, `[B, R, V]`."""
  merged = policy.merge()
  rows = jnp.tile(row.reshape(-1), (len(batch.index), 1))
  prefix = merged.user_model.prefixes(rows.reshape(-1, *row.shape))
  hidden = objective_lib.response_hidden(merged, batch, prefix)[:, 0]
  weight, bias = merged.lm.head()
  logits = hidden @ weight.T
  return jax.nn.log_softmax(logits if bias is None else logits + bias, -1)


# Noise is that of float32, times beta, and a token.
@pytest.mark.parametrize(
  "kind, loss, noise", [(KINDS[0], {}, 0.02), (KINDS[1], NORMALIZED, 0.002)]
)
def test_a_thumb_is_how_much_sooner_one_would_be_answered_so(
  kind, loss, noise, folder
):
  learner, _, dataset, policy, _ = make_parts(kind, folder, **loss)
  pair = dataset.train[0]
  one, other = pair.chosen, pair.rejected[0]
  choices = learner.prepare(
    [
      pair,
      structs.Thumb(pair.prompt, one, True, "1"),
      structs.Thumb(pair.prompt, other, True, "1"),
      structs.Thumb(pair.prompt, other, False, "1"),
    ]
  ).choices
  assert [choice.place for choice in choices] == [0, 1, 2, 3]
  assert [choice.is_thumb for choice in choices] == [False, True, True, True]
  population = learner.population
  group = population.groups - 1
  z = np.full((4, population.size), 2.0)
  groups = np.full(4, group)
  found, slopes = learner.margins(choices, groups, z)
  examples = [choice.example for choice in choices[1:3]]
  (batch,) = learner._margins.batches(examples, np.zeros((2, 2)))
  batch = jax.tree.map(jnp.asarray, batch)
  somebody = token_logps(policy, batch, population.row(group, z[0]))
  generic = token_logps(
    policy, batch, population.generic.reshape(population.shape)
  )
  gap = somebody - generic
  said = jnp.take_along_axis(gap, batch.responses[:, 0, :, None], -1)[..., 0]
  expected = (jnp.exp(generic) * gap).sum(-1)
  mask = batch.response_mask[:, 0]
  surplus = (jnp.where(mask, said - expected, 0)).sum(-1)
  surplus = np.asarray(surplus)[[list(batch.index).index(n) for n in (0, 1)]]
  if loss:
    surplus = surplus / [len(x.responses[0]) for x in examples]
  np.testing.assert_allclose(found[1:3], BETA * surplus, atol=noise)
  assert np.abs(found[1:3]).max() > 5 * noise
  assert found[2] == -found[3]
  np.testing.assert_array_equal(slopes[2], -slopes[3])
  # The gradient, by differences.
  step = 1e-2 * np.eye(population.size)[0]
  ahead, _ = learner.margins(choices, groups, z + step)
  behind, _ = learner.margins(choices, groups, z - step)
  np.testing.assert_allclose(
    slopes[1:3, 0], (ahead - behind)[1:3] / 2e-2, atol=100 * noise, rtol=0.05
  )
  person = learner.learn(choices[1:2] + choices[3:])["1"]
  assert (person.choices, person.converged) == (2, True)
  before, after = (
    learner.outlook(x, choices).margin[person.group, [1, 3]].sum()
    for x in (learner.nobody(), person)
  )
  # Without a step, there is too little to learn.
  assert after > before or not person.iterations


def test_whatever_the_generic_user_says_a_thumb_on_it_tells_nothing_on_average(
  folder,
):
  learner, _, dataset, policy, base = make_parts("individual", folder)
  (thumb,) = learner.prepare(
    [structs.Thumb(dataset.train[0].prompt, "a", True, "1")]
  ).choices
  vocabulary = base.lm.head()[0].shape[0]
  words = np.arange(vocabulary, dtype=np.int32)
  # Every answer of one token.
  choices = [
    dataclasses.replace(
      thumb,
      example=dataclasses.replace(
        thumb.example, responses=(words[[word]], words[:0])
      ),
    )
    for word in words
  ]
  population = learner.population
  z = np.full((vocabulary, population.size), 2.0)
  margins, _ = learner.margins(choices, np.zeros(vocabulary, int), z)
  (batch,) = learner._margins.batches(
    [choices[0].example], np.zeros((1, 2), np.float32)
  )
  generic = token_logps(
    policy,
    jax.tree.map(jnp.asarray, batch),
    population.generic.reshape(population.shape),
  )[0, 0]
  mean = np.exp(np.asarray(generic, np.float64)) @ margins
  assert abs(mean) < 1e-2 * np.abs(margins).max()
  assert margins.min() < 0 < margins.max()


def test_many_people_at_once_are_each_as_if_alone(parts):
  learner, prepared, *_ = parts
  together = learner.learn(prepared.choices, ["nobody's"])
  assert set(together) == {"1", "2", "3", "nobody's"}
  for user_id in "123":
    alone = learner.learn(of_user(prepared.choices, user_id))[user_id]
    for name in ("z", "covariance", "log_evidence"):
      np.testing.assert_allclose(
        getattr(together[user_id], name),
        getattr(alone, name),
        # The search ends within a tolerance.
        atol=0.1,
      )
    assert together[user_id].choices == alone.choices == 5


def test_without_choices_a_person_is_the_generic_user(parts):
  learner, *_ = parts
  person = learner.learn([], ["ann"])["ann"]
  groups = learner.population.groups
  size = learner.population.size
  np.testing.assert_array_equal(person.z, np.zeros((groups, size)))
  np.testing.assert_array_equal(person.covariance, [np.eye(size)] * groups)
  assert (person.choices, person.iterations) == (0, 0)
  np.testing.assert_allclose(person.log_evidence, 0.0, atol=1e-12)
  np.testing.assert_allclose(person.groups, learner.population.shares)
  np.testing.assert_array_equal(
    person.row.reshape(-1), learner.population.generic
  )


def test_the_more_choices_the_surer(parts):
  learner, prepared, *_ = parts
  mine = of_user(prepared.choices, "1")
  few, many = (learner.learn(mine[:n])["1"] for n in (1, 5))
  assert (
    np.linalg.slogdet(many.covariance[many.group])[1]
    < np.linalg.slogdet(few.covariance[many.group])[1]
  )
  outlook = learner.outlook(few, mine)
  if learner.population.groups == 1:
    # Doubt draws a probability towards a half.
    plain = posterior.probability(outlook.margin[0], 0.0)
    assert np.all(np.abs(outlook.probability - 0.5) <= np.abs(plain - 0.5))
  assert np.all(outlook.information > 0)
  assert outlook.deviation.max() > 0


def test_a_calibration_scales_margins_and_bounds_probabilities(folder):
  learner, prepared, _, policy, base = make_parts("individual", folder)
  config = tiny.tiny_config(folder)
  config.loss.beta = BETA
  config.user.init_std = SPREAD
  config.user.kind = "individual"
  calibrated = people_lib.Learner(
    config.recipe,
    base,
    policy,
    calibration=calibration.Calibration(5.0, 0.1),
  )
  mine = of_user(prepared.choices, "1")
  nobody = learner.nobody()
  plain = learner.outlook(nobody, mine)
  outlook = calibrated.outlook(nobody, mine)
  np.testing.assert_allclose(outlook.margin, 5 * plain.margin, rtol=1e-5)
  np.testing.assert_allclose(outlook.deviation, 5 * plain.deviation, rtol=1e-5)
  # However far choices are from what was expected, they pull.
  person = calibrated.learn(mine)["1"]
  assert person.converged
  sure = calibrated.outlook(person, mine)
  assert np.all(sure.probability >= 0.05) and np.all(sure.probability <= 0.95)
  assert sure.margin.sum() > outlook.margin.sum()


def test_choices_between_equal_texts_are_counted_and_left_out(parts):
  learner, _, dataset, *_ = parts
  example = dataset.train[0]
  alike = dataclasses.replace(example, rejected=(example.chosen,))
  prepared = learner.prepare([alike])
  assert prepared.choices == []
  assert prepared.counts["comparisons dropped"] == 1
  mixed = dataclasses.replace(
    example, rejected=(example.chosen, *example.rejected, " other words")
  )
  prepared = learner.prepare([alike, mixed])
  assert [choice.place for choice in prepared.choices] == [1, 1]
  with pytest.raises(ValueError, match="user_id"):
    learner.learn([dataclasses.replace(prepared.choices[0], user_id=None)])


def test_what_is_over_a_limit_is_named_with_its_person_and_place(parts):
  learner, _, dataset, *_ = parts
  fields = {"user_id": "bob", "place": "a.jsonl:7"}
  long = " cat" * 200
  example = dataclasses.replace(dataset.train[0], **fields)
  for faulty in (
    dataclasses.replace(example, chosen=long),
    structs.Thumb(example.prompt, long, True, **fields),
  ):
    with pytest.raises(ValueError, match=r"'bob'\), from a\.jsonl:7.*shorten"):
      learner.prepare([example, faulty])


def test_a_thousand_choices_run_in_pieces(folder):
  learner, prepared, *_ = make_parts("cluster", folder)
  choices = prepared.choices * 5
  sizes = [
    len(x.index)
    for x in learner._margins.batches([c.example for c in choices], None)
  ]
  assert max(sizes) == 16
  assert sum(sizes) >= len(choices)
  once = learner.learn(of_user(prepared.choices, "1"))["1"]
  five = learner.learn(of_user(choices, "1"))["1"]
  assert five.choices == 25
  # More of the same evidence leaves less of the prior.
  assert np.linalg.norm(five.z) > np.linalg.norm(once.z)


def test_rows_behind_the_table_are_answered_like_the_person(parts):
  learner, prepared, _, policy, _ = parts
  person = learner.learn(of_user(prepared.choices, "1"))["1"]
  longer = policies.with_rows(policy, [person.row, person.row])
  before, after = policy.merge().user_model, longer.merge().user_model
  assert after.num_rows == before.num_rows + 2
  rows = jnp.arange(before.num_rows)
  np.testing.assert_array_equal(after(rows), before(rows))
  np.testing.assert_allclose(
    after(jnp.array([before.num_rows])),
    before.prefixes(jnp.asarray(person.row)[None]),
    rtol=1e-6,
  )


def test_few_choices_take_a_program_that_there_is(parts, monkeypatch):
  learner, prepared, *_ = parts
  margins = learner._margins
  monkeypatch.setattr(margins, "_shapes", set())
  choices = of_user(prepared.choices, "1")
  none = np.zeros(1, int), np.zeros((1, learner.population.size))
  alone = learner.margins(choices[:1], *none)
  (own,) = margins._shapes
  larger = (own[0], own[1] + 16, own[2] + 16)
  monkeypatch.setattr(margins, "_shapes", {larger})
  again = learner.margins(choices[:1], *none)
  assert margins._shapes == {larger}
  for value, expected in zip(again, alone, strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
  # But none that costs more than four times as much, or is too small.
  monkeypatch.setattr(margins, "_shapes", {(2, 40, 48)})
  assert margins._had(1, 40, 16) == (2, 40, 48)
  for other in ((1, 8, 16), (1, 48, 16), (4, 40, 48)):
    assert margins._had(*other) == other
  # Many rows have their own, for themselves alone.
  assert margins._had(64, 8, 16) == (64, 8, 16)
  assert margins._had(32, 8, 16) == (32, 8, 16)
