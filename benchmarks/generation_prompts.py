"""What sixteen people ask."""

_ABOUT = (
  "a walk along a river in spring",
  "how bread is made, step by step, with what can go wrong at each of them",
  "the moon",
  "whether cats or dogs are better company for somebody who works at home",
  "learning to play the piano as an adult",
  "a city that you like, and what a visitor with two days should see there",
  "why the sky is blue",
  "saving money when prices rise faster than wages, for a family of four",
)
_ASKED = ("Tell me about {}.", "What would you say to a friend about {}?")
PROMPTS = [asked.format(about) for asked in _ASKED for about in _ABOUT]
