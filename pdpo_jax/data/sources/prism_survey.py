"""What a participant of PRISM says of themselves, as a text for the model."""

from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import rows
from pdpo_jax.data.sources import prism_authors

_FACTS = (
  ("Age", "age"),
  ("Gender", "gender"),
  ("Employment", "employment_status"),
  ("Education", "education"),
  ("Marital status", "marital_status"),
  ("English", "english_proficiency"),
  ("Lives in", "location.reside_country"),
  ("Born in", "location.birth_country"),
  ("Religion", "religion.simplified"),
  ("Ethnicity", "ethnicity.simplified"),
)

# In the order of the survey's columns. "other" is what its text says.
_ASPECTS = {
  "values": "respect for my values and culture",
  "creativity": "creativity",
  "fluency": "good writing",
  "factuality": "correct facts",
  "diversity": "several points of view",
  "safety": "safety",
  "personalisation": "a personal touch",
  "helpfulness": "help with what I asked",
  "other": "",
}

# How the survey writes that there is no answer.
_NO_ANSWER = ("", "empty string", "prefer not to say")


def no_answer(text: str) -> bool:
  return text.strip().casefold() in _NO_ANSWER


def persona(row: rows.Row) -> structs.Persona:
  """All that a row of the survey says of a participant.

  Raises:
    rows.BrokenRow: if a field is of the wrong type. All may be missing.
  """
  facts = {label: text(row, path) for label, path in _FACTS}
  return structs.Persona(
    facts={label: fact for label, fact in facts.items() if fact},
    self_description=text(row, "self_description"),
    system_string=text(row, "system_string"),
    aspects=tuple(top_aspects(row, len(_ASPECTS), "stated")),
  )


def user_text(row: rows.Row, config: data_config.PrismConfig) -> str:
  """What `config` asks for and the row has; or "". As "chat", lines such as

    About me. Age: 25-34 years old. Gender: Female. Lives in: Kenya.
    What matters most to me in an answer: correct facts, safety, creativity.

  Raises:
    rows.BrokenRow: if a field is of the wrong type. All may be missing.
  """
  if config.prompt == "authors":
    names = set(_ranked(row, config.aspect_order)[: config.top_aspects])
    aspects = [name for name in _columns(row) if name in names]
    return prism_authors.user_text(row, aspects, config)
  known = persona(row)
  facts = " ".join(
    f"{label}: {fact.rstrip('.')}." for label, fact in known.facts.items()
  )
  aspects = top_aspects(row, config.top_aspects, config.aspect_order)
  lines = []
  if config.demographics and facts:
    lines.append(f"About me. {facts}")
  if config.stated_preferences and aspects:
    listed = ", ".join(aspects)
    lines.append(f"What matters most to me in an answer: {listed}.")
  if config.self_description and known.self_description:
    lines.append(f"In my own words: {known.self_description}")
  if config.system_string and known.system_string:
    lines.append(f"How an assistant should behave: {known.system_string}")
  return "\n".join(lines)


def top_aspects(row: rows.Row, count: int, order: str) -> list[str]:
  """What matters most to a participant, as phrases, first things first.

  Many rate several aspects 100. Equals go in the order in which the survey
  showed their sliders; since that was random, no aspect is favoured over all
  participants. Those without a place in it follow, in the survey's own order.

  Args:
    order: "stated", by the values given, leaving out aspects without one; or
      "shown", by the places on the page, whatever the values.
  """
  stated = rows.optional(row, "stated_prefs", dict) or {}
  phrases = dict(_ASPECTS, other=text(stated, "other_text").rstrip("."))
  names = [name for name in _ranked(row, order) if phrases[name]]
  return [phrases[name] for name in names[:count]]


def _ranked(row: rows.Row, order: str) -> list[str]:
  """Names of the aspects that have a place in the order, first things first."""
  stated = rows.optional(row, "stated_prefs", dict) or {}
  shown = _columns(row)
  values = {name: _number(stated, name) for name in _ASPECTS}
  places = {name: _number(shown, name) for name in _ASPECTS}
  needed = values if order == "stated" else places
  names = [name for name in _ASPECTS if needed[name] is not None]
  names.sort(key=lambda name: (places[name] is None, places[name] or 0))
  if order == "stated":
    names.sort(key=lambda name: -values[name])  # keeps the order of equals
  return names


def _columns(row: rows.Row) -> rows.Row:
  """Where each aspect's slider was shown, by the order of the columns."""
  return rows.optional(row, "order_stated_prefs", dict) or {}


def _number(row: rows.Row, name: str) -> int | float | None:
  value: Any = row.get(name)
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise rows.BrokenRow("wrong type", f"{name} {value!r:.60} must be a number")
  return value


def text(row: rows.Row, path: str) -> str:
  """The text at a dotted path, on one line; "" where there is none.

  Raises:
    rows.BrokenRow: if what is there is no text.
  """
  *parents, name = path.split(".")
  for parent in parents:
    row = rows.optional(row, parent, dict) or {}
  text = rows.optional(row, name, str) or ""
  return "" if no_answer(text) else " ".join(text.split())
