"""The card of an export: a README.md with a head that the hub reads."""

import dataclasses
import pathlib
from collections.abc import Mapping

import huggingface_hub

from pdpo_jax.core import display, kept

NAME = "README.md"
_TAGS = ("pdpo_jax", "personalization", "dpo", "p-dpo")
_PEOPLE = """
## Whom it may answer

A row was learnt from the choices of one person, and `users.json` has ids of
people. Answer somebody by their own row, and whoever is not in `users.json`, or
was not asked, by the first one, the generic user's. Publish this folder only
with the consent of all who are in it.

It is a copy. Somebody who is erased from the run is still in here: delete it
then, and export the run again.
"""


@dataclasses.dataclass(frozen=True)
class Card:
  """Where an export comes from.

  Attributes:
    base_model: the base's id on the hub, with its revision; "" if it is not
      from there.
    license: fields of the base's licence, as on the hub; none if unknown.
    datasets: ids on the hub, if the data is from there.
    accuracy: share of held-out choices that the run told right, by split.
  """

  base_model: str = ""
  license: Mapping[str, str] = dataclasses.field(default_factory=dict)
  datasets: tuple[str, ...] = ()
  accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def write(
    self,
    folder: pathlib.Path,
    text: str,
    library: str = "transformers",
    *,
    people: bool = True,
  ) -> None:
    """Writes the card.

    Args:
      text: below its title.
      library: that reads the folder.
      people: whether there is anything of people in it.
    """
    name = folder.resolve().name
    data = ", ".join(self.datasets) or "choices of people"
    head = huggingface_hub.ModelCardData(
      model_name=name,
      base_model=self.base_model.partition("@")[0] or None,
      datasets=list(self.datasets) or None,
      library_name=library,
      pipeline_tag="text-generation",
      tags=[*_TAGS],
      metrics=["accuracy"] if self.accuracy else None,
      eval_results=[
        huggingface_hub.EvalResult(
          task_type="text-generation",
          dataset_type=self.datasets[0] if self.datasets else "choices",
          dataset_name=data,
          dataset_split=split,
          metric_type="accuracy",
          metric_name="choices told right",
          metric_value=round(value, 4),
        )
        for split, value in self.accuracy.items()
      ]
      or None,
      **self.license,
    )
    card = (
      f"---\n{head.to_yaml()}\n---\n\n# {display.markdown(name)}\n\n{text}"
      f"{_PEOPLE if people else ''}{self._sources()}"
    )
    with kept.writing(folder / NAME, summed=False) as out:
      out.write(card.encode())

  def _sources(self) -> str:
    known = {
      "Base": self.base_model,
      "Licence of the base": ", ".join(self.license.values()),
      "Data": ", ".join(self.datasets),
      **{
        f"Choices told right ({split})": f"{value:.1%}"
        for split, value in self.accuracy.items()
      },
    }
    lines = [
      f"- {name}: {display.markdown(value)}\n"
      for name, value in known.items()
      if value
    ]
    return "\n## Where it comes from\n\n" + "".join(lines) if lines else ""
