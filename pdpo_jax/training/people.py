"""A person from a few choices: who they are, how sure that is, what to ask.

Nothing of the run is trained. A person is a row of the user table, drawn from
the `population` of the run's users, and their choices say which:

    row(z) = m + z B,    z ~ N(0, I),
    P(a is preferred to b) = sigma(margin),    margin = beta (d(a) - d(b)),

with `d(y) = log pi(y | x, row) - log ref(y | x)`, as in training. `learn` finds
the most likely z by damped Gauss-Newton, which needs a pass forward and back
for each of a few iterations, and neither a learning rate nor a number of steps.
The curvature there says how sure it is (Laplace's approximation).

    learner = run.own.learner                      # of `runs/run.py`
    prepared = learner.prepare(examples)           # PreferenceExamples
    people = learner.learn(prepared.choices)       # by user id
    people["ann"].row                              # for the user table
    learner.outlook(people["ann"], more.choices)   # probabilities, information

Axes: A people · B choices · k directions · F numbers of a row.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from pdpo_jax.core import processes, structs
from pdpo_jax.data import batching, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.training import (
  branch_batches,
  host_users,
  losses,
  policies,
  posterior,
  recipes,
  scoring,
  sharding,
)
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import population as population_lib
from pdpo_jax.weights import base as base_lib


@dataclasses.dataclass(frozen=True)
class Choice:
  """Of one prompt, a person preferred one response to another.

  Attributes:
    user_id: whose it is; None for nobody's, such as one that may be asked.
    place: of its comparison among those that it was prepared from.
    example: the preferred response and the other one.
    reference_logps: of both, in nats.
  """

  user_id: str | None
  place: int
  example: structs.TokenizedExample
  reference_logps: Float[np.ndarray, " 2"]


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Comparisons, ready to be learnt from.

  Attributes:
    choices: one for each rejected response that differs from the chosen one.
    counts: what was cut or left out, by reason.
  """

  choices: list[Choice]
  counts: collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class Person:
  """What is known of somebody.

  Attributes:
    row: for the user table, an offset `[T, D]` or weights `[C]`.
    z: their place in the population.
    covariance: of z.
    choices: that it was learnt from.
    log_evidence: log probability of all their choices in this population, in
      nats; of somebody who chooses by chance it is far below that of others.
    iterations: that it took.
    converged: whether it ended at a tolerance, and not by a limit.
  """

  row: Float[np.ndarray, "..."]
  z: Float[np.ndarray, " k"]
  covariance: Float[np.ndarray, "k k"]
  choices: int
  log_evidence: float
  iterations: int
  converged: bool


@dataclasses.dataclass(frozen=True)
class Outlook:
  """What a person is expected to choose.

  Attributes:
    margin: in favour of each choice's first response, in nats.
    deviation: standard deviation of the margin, since the person is not known
      exactly.
    lapse: as for `Learner`.
  """

  margin: Float[np.ndarray, " B"]
  deviation: Float[np.ndarray, " B"]
  lapse: float

  @property
  def probability(self) -> Float[np.ndarray, " B"]:
    """That the first is preferred.

    The mean of sigma over the margin's normal distribution, approximately
    (MacKay 1992, "The evidence framework applied to classification networks").
    """
    scale = np.sqrt(1 + np.pi / 8 * np.square(self.deviation))
    return posterior.probability(self.margin / scale, self.lapse)

  @property
  def information(self) -> Float[np.ndarray, " B"]:
    """What the answer would tell of the person, in nats (Lindley 1956).

        1/2 log(1 + w var(margin)),

    with w the information of an answer on its margin, p (1 - p) without lapse.
    """
    information = posterior.information(self.margin, self.lapse)
    return 0.5 * np.log1p(information * np.square(self.deviation))


@functools.cache
def _make_margins(
  graphdef: Any, beta: float, length_normalized: bool, logits_chunk: int
):
  """The jitted margins of a batch, and their gradients with respect to z."""

  def run(trainable, frozen, batch, z, mean, directions):
    policy = nnx.merge(graphdef, trainable, frozen)

    def margins(z):
      rows = mean + jnp.tensordot(z, directions, 1)
      logps = objective_lib.response_logps(
        policy, batch, policy.user_model.prefixes(rows), logits_chunk
      )
      ratios = losses.log_ratios(
        logps,
        batch.reference_logps,
        batch.response_mask if length_normalized else None,
      )
      # A row that fills up has no margin.
      ratios = jnp.where(
        batch.weight[:, None] > 0, losses.differences(ratios), 0.0
      )
      return beta * ratios[:, 0]

    # Each margin depends on its own z alone, so that one pass back gives all
    # their gradients.
    values, pull_back = jax.vjp(margins, z)
    (gradients,) = pull_back(jnp.ones_like(values))
    return values, gradients

  return jax.jit(run)


class Learner:
  """Learns people for a policy that is trained.

  Args:
    recipe: of the policy's run.
    base: of that run, which is the reference.
    policy: its user table says how people differ.
    num_users: of the table; without, all its rows are somebody's.
    population: in place of that of the table.
    lapse: share of choices that are made at random.
  """

  def __init__(
    self,
    recipe: recipes.Recipe,
    base: base_lib.Base,
    policy: policies.SplitPolicy,
    *,
    num_users: int | None = None,
    population: population_lib.Population | None = None,
    lapse: float = 0.0,
  ):
    self.population = population or population_lib.of_policy(policy, num_users)
    self.lapse = lapse
    self._recipe, self._base, self._policy = recipe, base, policy
    # The table is not read: rows come from outside of it.
    self._trainable, _ = host_users.narrow(
      policy.trainable, np.zeros(1, np.int32)
    )
    self._mesh = sharding.mesh_of(policy.frozen)
    # As many rows as a microbatch of training has, both branches.
    train = recipe.train
    self._most = 2 * train.batch_size // train.accumulation_steps
    chunk = sharding.logits_chunk(train.logits_chunk, self._mesh)
    self._margins = _make_margins(
      policy.graphdef, recipe.loss.beta, recipe.loss.length_normalized, chunk
    )

  def prepare(self, examples: Sequence[structs.PreferenceExample]) -> Prepared:
    """Token ids and what the reference thinks, computed once.

    A comparison is a choice for each of its rejected responses; several ranked
    responses are comparisons of neighbours (each with the next). Those that say
    nothing, between responses with the same tokens, are counted and left out,
    and so are those that training would leave out.
    """
    split = tokenized.tokenize_split(
      "choices",
      [dataclasses.replace(x, place=str(n)) for n, x in enumerate(examples)],
      self._recipe.data,
      self._base.tokenizer,
      users_lib.UserIndex([]),
      may_be_none=True,
    )
    owners, pairs = [], []
    for text, example in zip(split.examples, split.tokenized, strict=True):
      chosen, *others = example.responses
      for rejected in others:
        owners.append((text.user_id, int(text.place)))
        pairs.append(dataclasses.replace(example, responses=(chosen, rejected)))
    reads = branch_batches.reference_rows(self._recipe, pairs)
    logps = np.zeros((len(pairs), 2), np.float32)
    batches = self._batches(reads, None)
    for batch, values in scoring.score_batches(
      scoring.of_base(self._base), batches, self._recipe.train.logits_chunk
    ):
      real = batch.index >= 0
      logps[batch.index[real]] = values[real]
    choices = [
      Choice(*owner, pair, reference)
      for owner, pair, reference in zip(owners, pairs, logps, strict=True)
    ]
    return Prepared(choices, split.counts)

  def learn(
    self, choices: Sequence[Choice], people: Iterable[str] = ()
  ) -> dict[str, Person]:
    """What each person is like, of those whose choices these are.

    Maximum a posteriori; all are learnt together, and each as if alone.

    Args:
      people: ids of who is to be in the result even without a choice, which
        makes them the mean of the population.
    """
    owners = [choice.user_id for choice in choices]
    if None in owners:
      raise ValueError(
        f"choice {owners.index(None)} is nobody's; give each a user_id"
      )
    ids = list(dict.fromkeys([*people, *owners]))
    numbers = {user_id: number for number, user_id in enumerate(ids)}
    owner = np.array([numbers[user_id] for user_id in owners], np.int64)
    found = posterior.maximize(
      lambda places, z: self.margins([choices[place] for place in places], z),
      owner,
      np.zeros((len(ids), self.population.size)),
      self.lapse,
    )
    counts = np.bincount(owner, minlength=len(ids))
    covariance = np.linalg.inv(found.curvature)
    evidence = -found.objective - 0.5 * np.linalg.slogdet(found.curvature)[1]
    return {
      user_id: Person(
        self.population.row(found.z[number]),
        found.z[number],
        covariance[number],
        int(counts[number]),
        float(evidence[number]),
        int(found.iterations[number]),
        bool(found.converged[number]),
      )
      for user_id, number in numbers.items()
    }

  def nobody(self) -> Person:
    """Somebody of whom nothing is known."""
    return self.learn([], [""])[""]

  def outlook(self, person: Person, choices: Sequence[Choice]) -> Outlook:
    """What a person is expected to choose of each pair."""
    z = np.broadcast_to(person.z, (len(choices), len(person.z)))
    margins, gradients = self.margins(choices, z)
    variances = np.einsum(
      "bi,ij,bj->b", gradients, person.covariance, gradients
    )
    return Outlook(margins, np.sqrt(variances), self.lapse)

  def margins(
    self, choices: Sequence[Choice], z: Float[np.ndarray, "B k"]
  ) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, "B k"]]:
    """The margin of each choice for somebody at z, and its gradient there."""
    margins = np.zeros(len(choices))
    gradients = np.zeros((len(choices), self.population.size))
    shape = self.population.shape
    mean = self.population.mean.reshape(shape)
    directions = self.population.directions.reshape(-1, *shape)
    if self._mesh is not None:
      mean, directions = sharding.put(
        (mean, directions), sharding.whole(self._mesh)
      )
    place = sharding.batch_placer(self._mesh)
    logps = np.zeros((len(choices), 2), np.float32)
    for number, choice in enumerate(choices):
      logps[number] = choice.reference_logps
    examples = [choice.example for choice in choices]
    for batch in self._batches(examples, logps):
      real = batch.index >= 0
      places = np.zeros((len(batch.index), z.shape[1]), np.float32)
      places[real] = z[batch.index[real]]
      values, slopes = self._margins(
        self._trainable,
        self._policy.frozen,
        place(batch),
        place(places),
        mean,
        directions,
      )
      margins[batch.index[real]] = processes.fetch(values)[real]
      gradients[batch.index[real]] = processes.fetch(slopes)[real]
    return margins, gradients

  def _batches(
    self,
    examples: Sequence[structs.TokenizedExample],
    reference_logps: Float[np.ndarray, "B 2"] | None,
  ) -> Iterator[structs.PreferenceBatch]:
    """Batches of few shapes, so that programs are compiled once for all."""
    prefix = self._recipe.user.prefix_length
    sizes = np.array(
      [(len(x.prompt), max(map(len, x.responses))) for x in examples]
    ).reshape(-1, 2)
    order = np.argsort(sizes.sum(1), kind="stable")
    shards = sharding.batch_shards(self._mesh)
    for start in range(0, len(order), self._most):
      chosen = order[start : start + self._most]
      rows = 1
      while rows < min(len(chosen), self._most):
        rows *= 2
      rows = -(-min(rows, self._most) // shards) * shards
      places = [[int(place)] for place in chosen]
      places += [[]] * (rows - len(chosen))
      prompt, response = map(int, sizes[chosen].max(0))
      shape = (
        batching.padded_length(prompt + prefix) - prefix,
        2,
        batching.padded_length(response),
      )
      yield batching.make_batch(examples, reference_logps, places, shape)
