import pytest

from tests import loading, prism_files


def text_of(tmp_path, changes_of_record, **options):
  """The user text of a participant who says these things only."""
  silent = {
    name: None
    for name in (
      "age",
      "gender",
      "employment_status",
      "education",
      "marital_status",
      "english_proficiency",
      "religion",
      "ethnicity",
      "location",
      "stated_prefs",
    )
  }
  prism_files.write_dialogues(
    tmp_path,
    prism_files.one_user(prism_files.TURNS),
    **(silent | changes_of_record),
  )
  dataset = loading.load(
    prism_files.make_config(tmp_path, unseen_users=0.0, **options)
  )
  texts = {each.user_text for each in dataset.train + dataset.heldout}
  texts |= {each.user_text for each in dataset.prompts}
  (text,) = texts
  return text


WHOLE = {
  "age": "25-34 years old",
  "gender": "Female",
  "employment_status": "Working part-time.",
  "education": "Prefer not to say",
  "marital_status": None,
  "english_proficiency": "Fluent",
  "religion": {"self_described": "x", "simplified": "Prefer not to say"},
  "ethnicity": {"simplified": "Asian"},
  "location": {"birth_country": "India", "reside_country": "Kenya"},
  "self_description": "I value\nhonesty.",
  "system_string": "Be kind.",
  "stated_prefs": {
    "values": 20,
    "creativity": None,
    "fluency": 90,
    "factuality": 100,
    "diversity": 5,
    "safety": 60,
    "personalisation": 0,
    "helpfulness": 80,
    "other": 95,
    "other_text": "brevity.",
  },
}
ABOUT = (
  "About me. Age: 25-34 years old. Gender: Female. Employment: Working "
  "part-time. English: Fluent. Lives in: Kenya. Born in: India. Ethnicity: "
  "Asian."
)
MATTERS = (
  "What matters most to me in an answer: correct facts, brevity, good writing."
)
WORDS = "In my own words: I value honesty."
SYSTEM = "How an assistant should behave: Be kind."


@pytest.mark.parametrize(
  ("options", "lines"),
  [
    ({}, [ABOUT, MATTERS]),
    ({"demographics": False}, [MATTERS]),
    ({"stated_preferences": False}, [ABOUT]),
    ({"self_description": True}, [ABOUT, MATTERS, WORDS]),
    ({"system_string": True}, [ABOUT, MATTERS, SYSTEM]),
    ({"demographics": False, "stated_preferences": False}, []),
    ({"top_aspects": 0}, [ABOUT]),
  ],
)
def test_a_users_text_has_the_parts_that_are_switched_on(
  tmp_path, options, lines
):
  assert text_of(tmp_path, WHOLE, **options) == "\n".join(lines)


@pytest.mark.parametrize("blank", [None, "", "prefer not to say ", "absent"])
def test_what_a_user_does_not_say_is_left_out(tmp_path, blank):
  changes = dict.fromkeys(
    ("age", "gender", "self_description", "system_string"), blank
  )
  if blank == "absent":
    changes = {"religion": {}, "location": {"special_region": "x"}}
  changes |= {"stated_prefs": {"values": None}, "education": "Vocational"}
  text = text_of(tmp_path, changes, self_description=blank != "absent")
  assert text == "About me. Education: Vocational."


def test_users_without_stated_preferences_are_noted(tmp_path):
  prism_files.write_dialogues(
    tmp_path, prism_files.one_user(prism_files.TURNS), stated_prefs=None
  )
  for wanted in (True, False):
    config = prism_files.make_config(
      tmp_path, unseen_users=0.0, stated_preferences=wanted
    )
    noted = loading.load(config).tally.noted
    assert noted["users without stated preferences"] == wanted


ORDER = {
  "values": 9,
  "creativity": 1,
  "fluency": 8,
  "factuality": 7,
  "diversity": 2,
  "safety": 6,
  "personalisation": 3,
  "helpfulness": 5,
  "other": 4,
}


@pytest.mark.parametrize(
  ("stated", "order", "by", "phrases"),
  [
    # Equals go as they were shown.
    (
      {"values": 100, "fluency": 100, "safety": 100, "diversity": 99},
      ORDER,
      "stated",
      "safety, good writing, respect for my values and culture, several "
      "points of view",
    ),
    # No order: as the survey's columns stand.
    (
      {"safety": 100, "values": 100, "fluency": 99.5},
      None,
      "stated",
      "respect for my values and culture, safety, good writing",
    ),
    # "other" without a text says nothing.
    ({"other": 100, "safety": 0}, ORDER, "stated", "safety"),
    (
      {"values": 100, "other": 1, "other_text": "jokes"},
      ORDER,
      "shown",
      "creativity, several points of view, a personal touch, jokes",
    ),
    (
      {"values": 100},
      ORDER,
      "shown",
      "creativity, several points of view, a personal touch, help with what I "
      "asked",
    ),
  ],
)
def test_aspects_are_ranked(tmp_path, stated, order, by, phrases):
  changes = {"stated_prefs": stated, "order_stated_prefs": order}
  text = text_of(tmp_path, changes, top_aspects=4, aspect_order=by)
  assert text == f"What matters most to me in an answer: {phrases}."


def test_a_persona_has_all_that_is_known_whatever_the_text_has(tmp_path):
  prism_files.write_dialogues(
    tmp_path, prism_files.one_user(prism_files.TURNS), **WHOLE
  )
  config = prism_files.make_config(
    tmp_path, unseen_users=0.0, demographics=False, top_aspects=0
  )
  persona = loading.load(config).personas["user0"]
  assert persona.facts == {
    "Age": "25-34 years old",
    "Gender": "Female",
    "Employment": "Working part-time.",
    "English": "Fluent",
    "Lives in": "Kenya",
    "Born in": "India",
    "Ethnicity": "Asian",
  }
  assert persona.self_description == "I value honesty."
  assert persona.system_string == "Be kind."
  assert persona.aspects[:3] == ("correct facts", "brevity", "good writing")
  assert len(persona.aspects) == 8
