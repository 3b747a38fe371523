"""A person from a few choices: who they are, how sure that is, what to ask.

Nothing of the run is trained. A person is a row of the user table, drawn from
the `population` of the run's users, and their choices say which:

    row = m_g + z B,    z ~ N(0, I),
    P(a is preferred to b) = sigma(margin),
    margin = scale beta (d(a) - d(b)),

with `d(y) = log pi(y | x, row) - log ref(y | x)`, as in training; the scale and
a share of choices that are made by chance come from `calibration.py`. `learn`
finds the most likely group g and z by damped Gauss-Newton, with a pass forward
and back for each of a few iterations, and neither a learning rate nor a number
of steps. The curvature there says how sure it is (Laplace's approximation).

    learner = run.own.learner                      # of `runs/run.py`
    prepared = learner.prepare(examples)           # PreferenceExamples
    people = learner.learn(prepared.choices)       # by user id
    people["ann"].row                              # for the user table
    learner.outlook(people["ann"], more.choices)   # probabilities, information

Axes: A people · B choices · G groups · k directions · F
numbers of a row.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from pdpo_jax.core import structs
from pdpo_jax.training import calibration as calibration_lib
from pdpo_jax.training import choices as choices_lib
from pdpo_jax.training import margins as margins_lib
from pdpo_jax.training import policies, posterior, recipes
from pdpo_jax.training import population as population_lib
from pdpo_jax.weights import base as base_lib

# Groups are not searched that are less likely than another by so many nats
# before anything is learnt, nor read for what somebody will choose who is of
# them with no more than this probability.
_HOPELESS, _NEGLIGIBLE = 10.0, 1e-4


@dataclasses.dataclass(frozen=True)
class Person:
  """What is known of somebody.

  Attributes:
    row: for the user table, an offset `[T, D]` or weights `[C]`: of the most
      likely group and z. Without choices it is the generic user's.
    groups: probability of each group of the population.
    z: their coordinates, if they are of a group.
    covariance: of z.
    choices: that it was learnt from.
    log_evidence: log probability of all their choices in this population, in
      nats; of somebody who chooses by chance it is far below that of others.
    iterations: that it took.
    converged: whether it ended at a tolerance, and not by a limit.
  """

  row: Float[np.ndarray, "..."]
  groups: Float[np.ndarray, " G"]
  z: Float[np.ndarray, "G k"]
  covariance: Float[np.ndarray, "G k k"]
  choices: int
  log_evidence: float
  iterations: int
  converged: bool

  @property
  def group(self) -> int:
    """The most likely one."""
    return int(np.argmax(self.groups))


@dataclasses.dataclass(frozen=True)
class Outlook:
  """What a person is expected to choose, as far as it is known who they are.

  Attributes:
    groups: probability of each group, of the person of each choice.
    margin: in favour of each choice's first response, if they are of a group.
    deviation: standard deviation of the margin there.
    lapse: of the learner's calibration.
  """

  groups: Float[np.ndarray, "G B"]
  margin: Float[np.ndarray, "G B"]
  deviation: Float[np.ndarray, "G B"]
  lapse: float

  @property
  def probability(self) -> Float[np.ndarray, " B"]:
    """That the first is preferred: its mean over who they may be."""
    chances = posterior.expected(
      lambda margin: posterior.probability(margin, self.lapse),
      self.margin,
      self.deviation,
    )
    return np.sum(self.groups * chances, 0)

  @property
  def information(self) -> Float[np.ndarray, " B"]:
    """What the answer would tell of the person, in nats (Lindley 1956).

    The entropy of the answer, less what it would be if they were known exactly
    (Houlsby et al. 2011, "Bayesian active learning for classification and
    preference learning"). Where deviations are small and there is one group,
    this is `1/2 log(1 + p (1 - p) deviation^2)`.
    """
    known = posterior.expected(
      lambda margin: posterior.entropy(
        posterior.probability(margin, self.lapse)
      ),
      self.margin,
      self.deviation,
    )
    known = np.sum(self.groups * known, 0)
    # Up to rounding, an answer never leaves more doubt.
    return (posterior.entropy(self.probability) - known).clip(0)


class Learner:
  """Learns people for a policy that is trained.

  Args:
    recipe: of the policy's run.
    base: of that run, which is the reference.
    policy: its user table says how people differ.
    user_rows: of the table, that are somebody's; without, all but row 0.
    population: in place of that of the table.
    calibration: of the policy; without, margins are log odds.
  """

  def __init__(
    self,
    recipe: recipes.Recipe,
    base: base_lib.Base,
    policy: policies.SplitPolicy,
    *,
    user_rows: Sequence[int] | None = None,
    population: population_lib.Population | None = None,
    calibration: calibration_lib.Calibration | None = None,
  ):
    self.population = population or population_lib.of_policy(policy, user_rows)
    self.calibration = calibration or calibration_lib.Calibration()
    self._margins = margins_lib.Margins(recipe, base, policy)
    self._basis = np.concatenate(
      [
        self.population.means,
        self.population.directions,
        self.population.generic[None],
      ]
    ).reshape(-1, *self.population.shape)
    self._preparer = choices_lib.Preparer(
      recipe.data, base.tokenizer, self._margins
    )

  def prepare(
    self, feedback: Sequence[structs.Feedback]
  ) -> choices_lib.Prepared:
    """Choices of comparisons and thumbs, as `choices.Preparer.prepare`."""
    return self._preparer.prepare(feedback)

  def learn(
    self, choices: Sequence[choices_lib.Choice], people: Iterable[str] = ()
  ) -> dict[str, Person]:
    """What each person is like, of those whose choices these are.

    Maximum a posteriori; all are learnt together, and each as if alone.

    Args:
      people: ids of who is to be in the result even without a choice, which
        makes them the generic user.
    """
    owners = [choice.user_id for choice in choices]
    if None in owners:
      raise ValueError(
        f"choice {owners.index(None)} is nobody's; give each a user_id"
      )
    ids = list(dict.fromkeys([*people, *owners]))
    numbers = {user_id: number for number, user_id in enumerate(ids)}
    owner = np.array([numbers[user_id] for user_id in owners], np.int64)
    groups = self.population.groups
    # Everybody is learnt as of each group, and each choice is read for each.
    everybody = np.concatenate(
      [owner + group * len(ids) for group in range(groups)]
    )

    def margins_of(places, z):
      return self.margins(
        [choices[place % len(choices)] for place in places],
        everybody[places] // len(ids),
        z,
      )

    call, lapse = (margins_of, everybody), self.calibration.lapse
    size = self.population.size
    found = posterior.start(groups * len(ids), size, *call, lapse)
    prior = np.log(self.population.shares)[:, None]
    # A group that is much less likely at once is not gone into.
    likely = prior - found.objective.reshape(groups, len(ids))
    worth = likely > likely.max(0) - _HOPELESS
    searched = np.flatnonzero(worth)
    if lapse:
      # What is far from what was expected of somebody may be chance, and then
      # pulls at nothing. So they are first sought as if nothing was.
      posterior.set_lapse(found, everybody, 0.0)
      posterior.minimize(found, searched, *call, 0.0)
      posterior.set_lapse(found, everybody, lapse)
    posterior.minimize(found, searched, *call, lapse)
    evidence = prior + found.log_evidence.reshape(groups, len(ids))
    total = special.logsumexp(evidence, 0)
    # By group and person.
    z, covariance, iterations, converged = (
      values.reshape(groups, len(ids), *values.shape[1:])
      for values in (
        found.z,
        np.linalg.inv(found.curvature),
        found.iterations,
        found.converged,
      )
    )
    counts = np.bincount(owner, minlength=len(ids))
    people = {}
    for user_id, number in numbers.items():
      best = int(np.argmax(evidence[:, number]))
      row = self.population.row(best, z[best, number])
      if not counts[number]:
        row = self.population.generic.reshape(self.population.shape)
      people[user_id] = Person(
        row,
        np.exp(evidence[:, number] - total[number]),
        z[:, number],
        covariance[:, number],
        int(counts[number]),
        float(total[number]),
        int(iterations[:, number].sum()),
        bool(converged[best, number]),
      )
    return people

  def nobody(self) -> Person:
    """Somebody of whom nothing is known."""
    return self.learn([], [""])[""]

  def outlook(
    self, person: Person, choices: Sequence[choices_lib.Choice]
  ) -> Outlook:
    """What a person is expected to choose of each pair."""
    return self.outlooks([person] * len(choices), choices)

  def outlooks(
    self, people: Sequence[Person], choices: Sequence[choices_lib.Choice]
  ) -> Outlook:
    """What a person each is expected to choose of a pair each."""
    shares = np.stack([person.groups for person in people], 1)  # [G, B]
    margins = np.zeros(shares.shape)
    deviations = np.zeros(shares.shape)
    # Of groups that somebody is hardly of, nothing is asked.
    number, place = np.nonzero(shares > _NEGLIGIBLE)
    z = np.stack([people[p].z[g] for g, p in zip(number, place, strict=True)])
    found, gradients = self.margins([choices[p] for p in place], number, z)
    covariances = np.stack(
      [people[p].covariance[g] for g, p in zip(number, place, strict=True)]
    )
    variances = np.einsum("bi,bij,bj->b", gradients, covariances, gradients)
    margins[number, place] = found
    deviations[number, place] = np.sqrt(variances)
    return Outlook(shares, margins, deviations, self.calibration.lapse)

  def margins(
    self,
    choices: Sequence[choices_lib.Choice],
    groups: Int[np.ndarray, " B"],
    z: Float[np.ndarray, "B k"],
  ) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, "B k"]]:
    """The margin of each choice for somebody of a group at z; its gradient."""
    groups = np.eye(self.population.groups)[groups]
    none = np.zeros((len(choices), 1))  # of the generic user
    coordinates = np.concatenate([groups, z, none], 1)
    logps = np.zeros((len(choices), 2), np.float32)
    is_thumb = np.zeros(len(choices), bool)
    for number, choice in enumerate(choices):
      logps[number] = choice.reference_logps
      is_thumb[number] = choice.is_thumb
    margins = np.zeros(len(choices))
    gradients = np.zeros(coordinates.shape)
    for of_thumbs in (False, True):
      places = np.flatnonzero(is_thumb == of_thumbs)
      if len(places):
        margins[places], gradients[places] = self._margins.of(
          [choices[place].example for place in places],
          logps[places],
          coordinates[places],
          self._basis,
          of_thumbs,
        )
    scale = self.calibration.scale
    return scale * margins, scale * gradients[:, groups.shape[1] : -1]
