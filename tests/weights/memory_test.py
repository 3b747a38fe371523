import sys

import pytest

from benchmarks import loading


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_little_memory_besides_the_loaded_arrays():
  found = loading.run("smollm2-135m", "float32", "float32", 100_000_000)
  assert found["loaded arrays"] == found["checkpoint"] > 500_000_000
  # A tensor, and what compiling takes; the 30 layers of the largest matrices
  # alone are 106 MB, three times.
  assert found["peak besides them"] < found["largest tensor"] + 80_000_000
