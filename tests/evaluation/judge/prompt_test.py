import pytest

from pdpo_jax.core import structs
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import evidence, prompt

PERSONA = structs.Persona(
  facts={"Age": "40", "Lives in": "Kenya"},
  self_description="I fish <a lot>.",
  system_string="Be brief & kind.",
  aspects=("correct facts", "safety", "creativity", "diversity"),
)
EXAMPLE = structs.PreferenceExample("How?", "Thus.", ("", "Never."), "ann")
EVIDENCE = evidence.Evidence(PERSONA, "It was slow.", (EXAMPLE,))
NOBODY = evidence.Evidence(structs.Persona(), "", ())
PROMPT = (
  structs.Message("user", "Hi"),
  structs.Message("assistant", "Hello"),
  structs.Message("user", "Why?"),
)


def render(found=EVIDENCE, user_text="", a="A1", b="B1", **config):
  template = prompt.Template(judge_config.JudgeConfig(**config))
  return template.render(PROMPT, a, b, user_text, found)


def test_the_judge_is_told_who_it_plays():
  system = render().system
  for text in (
    "- Age: 40\n- Lives in: Kenya",
    "I fish <a lot>.",
    "Be brief & kind.",
    "correct facts; safety; creativity.",
    "It was slow.",
    "How?\n\n--- They chose ---\nThus.",
    "--- They passed over ---\n(empty answer)",
    "--- They passed over ---\nNever.",
  ):
    assert text in system
  assert "diversity" not in system  # three aspects, as in the paper


def test_what_is_not_known_leaves_no_trace():
  prompts = render(NOBODY)
  assert "About the person" not in prompts.system
  assert "(1)" not in prompts.system
  assert "\n\n\n" not in prompts.system + prompts.user
  assert prompts.system.endswith("what most people would say.")


def test_the_users_text_is_shown_where_there_is_no_persona():
  assert "I am old." in render(NOBODY, "I am old.").system
  assert "I am old." not in render(EVIDENCE, "I am old.").system


def test_the_dialogue_and_both_answers_are_shown():
  user = render(b="  ").user
  assert "[user]\nHi\n\n[assistant]\nHello\n\n[user]\nWhy?" in user
  assert "=== Answer (a) ===\nA1\n" in user
  assert "=== Answer (b) ===\n(empty answer)\n" in user
  assert user.endswith("Output (a)\nOutput (b)\nTIE")


def test_templates_can_be_changed(tmp_path):
  file = tmp_path / "mine.txt"
  file.write_text("{{ prompt }} {{ b }}!")
  assert render(user_template=str(file)).user.endswith("B1!")


@pytest.mark.parametrize(
  "text,message",
  [
    ("{{ pompt }}", "'pompt' is undefined; there are a, aspects, b, examples"),
    ("{% if %}", r"mine\.txt:1: Expected an expression"),
  ],
)
def test_a_wrong_template_is_named_with_its_fault(tmp_path, text, message):
  file = tmp_path / "mine.txt"
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    render(user_template=str(file))


@pytest.mark.parametrize(
  "answer,verdict",
  [
    ("Short and kind.\nOutput (a)", "a"),
    ("Output (b)", "b"),
    ("TIE", "tie"),
    ("**Output (b)**", "b"),
    ("output: (A).", "a"),
    ("Verdict: TIE", "tie"),
    ("**Tie**", "tie"),
    ("Output (TIE)", "tie"),
    ("At first it is a tie, but no.\nOutput (a)", "a"),
    ("Output (a) is what I first thought.\n\nOutput (b)\n", "b"),
    ("Output (b)\nI hope this helps!", "b"),
    ("Output (a)\n\nOutput (a)", "a"),
    ("It is a tie between them.", None),
    ("I would not untie it.", None),
    ("Output (a) or Output (b)", None),
    ("I must say Output (a) or (b).", None),
    ("Output (a)/(b)/TIE", None),
    ("Output (a), which beats (b)", "a"),
    ("**Output** **(b)**", "b"),
    ("Output (**b**)", "b"),
    ("<think>Output (a) is likely.</think>\nOutput (b)", "b"),
    ("<think>Output (a) would be", None),
    ("Output (a)\nOutput (b)\nTIE", None),
    ("Output (c)", None),
    ("The first one.", None),
    ("", None),
  ],
)
def test_the_last_verdict_counts(answer, verdict):
  assert prompt.parse(answer) == verdict
