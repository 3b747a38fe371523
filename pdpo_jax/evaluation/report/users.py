"""Users' embeddings: read as tokens, and as maps."""

from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from typing_extensions import TypedDict

from pdpo_jax.core import processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import user_space
from pdpo_jax.evaluation.report import charts, page
from pdpo_jax.runs import trained
from pdpo_jax.weights import base as base_lib

# Users that are probed and projected, those that are drawn one by one, and
# those whose embeddings are read as tokens.
_MOST_USERS, _MOST_DRAWN, _MOST_READ = 2_000, 60, 10

Groups = Mapping[str, Collection[str]]


class Numbers(TypedDict):
  """Of `report.json`."""

  nearest_tokens: dict[str, list[str]]


def read_vectors(
  policy: trained.Trained, dataset: dataset_lib.Dataset
) -> user_space.UserVectors | None:
  """Embeddings of the busiest users; None for fewer than two, or no users."""
  if policy.config.user.kind == "none" or len(policy.users.ids) < 2:
    return None
  ids = policy.users.busiest(dataset.train, _MOST_USERS)
  return user_space.read_vectors(policy.policy.user_model, policy.users, ids)


def section(
  policy: trained.Trained,
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  vectors: user_space.UserVectors,
  groups: Groups,
) -> page.Section:
  """Embeddings as tokens, of a few users, and as maps, of the busiest."""
  read, drawn = (
    policy.users.busiest(dataset.train, most)
    for most in (_MOST_READ, _MOST_DRAWN)
  )
  nearest = _nearest_tokens(vectors, read, base)
  table = page.Table(
    ("embedding of", "nearest tokens"),
    "For each user token, the nearest of the vocabulary, by cosine with the "
    "table's mean taken off. A soft prefix need not be near any.",
    numbers=False,
  )
  for name, tokens in nearest.items():
    table.add(name, " · ".join(map(repr, tokens)))
  return page.Section(
    "Users",
    tables=[table],
    figures=_figures(vectors, drawn, groups),
    numbers=Numbers(nearest_tokens=nearest),
  )


def _figures(
  vectors: user_space.UserVectors, drawn: Sequence[str], groups: Groups
) -> list[page.Figure]:
  # Equals side by side, so that groups show as blocks.
  grouped = [user for users in groups.values() for user in users]
  order = {user: place for place, user in enumerate(grouped)}
  drawn = sorted(drawn, key=lambda user: order.get(user, len(order)))
  places = {user: place for place, user in enumerate(vectors.ids)}
  features = vectors.features[[places[user] for user in drawn]]
  kind = "weights" if vectors.weights is not None else "offsets"
  figures = [
    page.figure_or_note(
      "cosines",
      f"Cosine between users' {kind}; the {len(drawn)} busiest users.",
      lambda: draw_cosines(drawn, user_space.cosine_map(features)),
    ),
    page.figure_or_note(
      "projection",
      f"Principal components of users' {kind}, {len(vectors.ids):,} users.",
      lambda: draw_projection(
        vectors.ids, *user_space.project(vectors.features), groups
      ),
    ),
  ]
  if vectors.weights is not None:
    figures.append(
      page.figure_or_note(
        "clusters",
        "Weight of each cluster in a user's embedding.",
        lambda: draw_weights(drawn, features),
      )
    )
  return figures


def _nearest_tokens(
  vectors: user_space.UserVectors, ids: Sequence[str], base: base_lib.Base
) -> dict[str, list[str]]:
  """Of the generic user, of centers and of some users.

  Of a user's embedding, those of its offset from the generic one as well, since
  the two are often near the same tokens.
  """
  table = base.lm.embed(jnp.arange(len(base.tokenizer)))
  table = processes.fetch(table.astype(jnp.float32))
  prefixes = {"the generic user": vectors.generic}
  if vectors.centers is not None:
    for number, center in enumerate(vectors.centers[:_MOST_READ]):
      prefixes[f"center {number}"] = center
  else:
    places = {user: place for place, user in enumerate(vectors.ids)}
    for user in ids:
      prefix = vectors.prefixes[places[user]]
      prefixes[f"user {user}"] = prefix
      offset = prefix - vectors.generic + table.mean(0)
      prefixes[f"offset alone of user {user}"] = offset
  return {
    name: [
      base.tokenizer.decode(near)
      for near in user_space.nearest_tokens(prefix, table, 1)
    ]
    for name, prefix in prefixes.items()
  }


def draw_cosines(
  ids: Sequence[str], cosines: Float[np.ndarray, "users users"]
) -> bytes:
  """A map of cosines between users, in the given order."""
  size = min(8.0, 2.6 + 0.12 * len(ids))
  with charts.chart(size + 0.9, size) as (axes, png):
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    charts.name_ticks(axes, ids, "xy")
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
  return png.getvalue()


def draw_projection(
  ids: Sequence[str],
  places: Float[np.ndarray, "users 2"],
  share: float,
  groups: Groups,
) -> bytes:
  """Users in the plane of the two principal components, colored by group."""
  shades = np.array([charts.BLUE] * len(ids), dtype=object)
  with charts.chart(5.4, 4.2) as (axes, png):
    for color, (group, users) in zip(
      (charts.ORANGE, charts.GREEN), groups.items(), strict=False
    ):
      members = [place for place, user in enumerate(ids) if user in users]
      shades[members] = color
      axes.scatter([], [], color=color, label=group, s=20)
    axes.scatter(places[:, 0], places[:, 1], s=20, c=list(shades), linewidths=0)
    if len(ids) <= 30:
      charts.name_points(axes, ids, *places.T)
    if groups:
      axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(f"first of two components ({share:.0%} of the variance)")
    axes.set_ylabel("second")
  return png.getvalue()


def draw_weights(
  ids: Sequence[str], weights: Float[np.ndarray, "users C"]
) -> bytes:
  """Heat map: a line a user, a column a cluster."""
  height = min(9.0, 1.6 + 0.16 * len(ids))
  width = min(10.0, 2.6 + 0.28 * weights.shape[1])
  most = float(np.abs(weights).max()) or 1.0
  with charts.chart(width, height) as (axes, png):
    image = axes.imshow(
      weights, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto"
    )
    charts.name_ticks(axes, ids, "y")
    axes.set_xlabel("cluster")
    axes.figure.colorbar(image, ax=axes, label="weight")
  return png.getvalue()
