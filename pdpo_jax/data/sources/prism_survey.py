"""What a participant of PRISM says of themselves, as a text for the model."""

from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import records
from pdpo_jax.data.sources import dialogue_choices, prism_authors

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


def persona(record: records.Record) -> structs.Persona:
  """All that a record of the survey says of a participant.

  Raises:
    records.BrokenRecord: if a field is of the wrong type. All may be missing.
  """
  facts = {
    label: dialogue_choices.answer(record, path) for label, path in _FACTS
  }
  return structs.Persona(
    facts={label: fact for label, fact in facts.items() if fact},
    self_description=dialogue_choices.answer(record, "self_description"),
    system_string=dialogue_choices.answer(record, "system_string"),
    aspects=tuple(top_aspects(record, len(_ASPECTS), "stated")),
  )


def user_text(record: records.Record, config: data_config.PrismConfig) -> str:
  """What `config` asks for and the record has; or "". As "chat", lines such as

    About me. Age: 25-34 years old. Gender: Female. Lives in: Kenya.
    What matters most to me in an answer: correct facts, safety, creativity.

  Raises:
    records.BrokenRecord: if a field is of the wrong type. All may be missing.
  """
  if config.prompt == "authors":
    names = set(_ranked(record, config.aspect_order)[: config.top_aspects])
    aspects = [name for name in _columns(record) if name in names]
    return prism_authors.user_text(record, aspects, config)
  known = persona(record)
  aspects = top_aspects(record, config.top_aspects, config.aspect_order)
  lines = []
  if config.demographics and known.facts:
    lines.append(dialogue_choices.introduction(known.facts))
  if config.stated_preferences and aspects:
    listed = ", ".join(aspects)
    lines.append(f"What matters most to me in an answer: {listed}.")
  if config.self_description and known.self_description:
    lines.append(f"In my own words: {known.self_description}")
  if config.system_string and known.system_string:
    lines.append(f"How an assistant should behave: {known.system_string}")
  return "\n".join(lines)


def top_aspects(record: records.Record, count: int, order: str) -> list[str]:
  """What matters most to a participant, as phrases, first things first.

  Many rate several aspects 100. Equals go in the order in which the survey
  showed their sliders; since that was random, no aspect is favoured over all
  participants. Those without a place in it follow, in the survey's own order.

  Args:
    order: "stated", by the values given, leaving out aspects without one; or
      "shown", by the places on the page, whatever the values.
  """
  stated = records.optional(record, "stated_prefs", dict) or {}
  phrases = dict(
    _ASPECTS, other=dialogue_choices.answer(stated, "other_text").rstrip(".")
  )
  names = [name for name in _ranked(record, order) if phrases[name]]
  return [phrases[name] for name in names[:count]]


def _ranked(record: records.Record, order: str) -> list[str]:
  """Names of the aspects that have a place in the order, first things first."""
  stated = records.optional(record, "stated_prefs", dict) or {}
  shown = _columns(record)
  values = {name: _number(stated, name) for name in _ASPECTS}
  places = {name: _number(shown, name) for name in _ASPECTS}
  needed = values if order == "stated" else places
  names = [name for name in _ASPECTS if needed[name] is not None]
  names.sort(key=lambda name: (places[name] is None, places[name] or 0))
  if order == "stated":
    names.sort(key=lambda name: -values[name])  # keeps the order of equals
  return names


def _columns(record: records.Record) -> records.Record:
  """Where each aspect's slider was shown, by the order of the columns."""
  return records.optional(record, "order_stated_prefs", dict) or {}


def _number(record: records.Record, name: str) -> int | float | None:
  value: Any = record.get(name)
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise records.BrokenRecord(
      "wrong type", f"{name} {value!r:.60} must be a number"
    )
  return value
