"""P-DPO: personalized language models from personal choices, in JAX."""

import os

# transformers reads tokenizers here and needs no torch for that; it would
# advise at each start to install it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
