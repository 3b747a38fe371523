"""Checks every shape annotation of the package while the tests run."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Tests spend their time in compiling; tiny models gain nothing from LLVM's
# optimizations. Setting XLA_FLAGS brings them back.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# They also make the same tiny models again and again, in many processes. A
# program is compiled once in a session, whose processes inherit this.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.mkdtemp(prefix="pdpo-jax-tests-")
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import jaxtyping
import pytest

# A plugin of pytest may have imported JAX before.
jax.config.update(
  "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jaxtyping.install_import_hook("pdpo_jax", "beartype.beartype")


def pytest_collection_modifyitems(items):
  """Files with slow tests come first, so that no process waits for the last.

  `-n 2 --dist loadfile --no-loadscope-reorder` deals files out in this order.
  """
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


_MAPS, _MOST_MAPS = map(
  pathlib.Path, ("/proc/self/maps", "/proc/sys/vm/max_map_count")
)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
  """Forgets compiled programs before a process may hold no more of them.

  On a CPU each takes a few mappings of memory, of which Linux allows a process
  65,530. LLVM crashes at that number, which one of two processes reaches.
  """
  yield
  if _MAPS.is_file():
    with _MAPS.open("rb") as maps:
      count = sum(1 for _ in maps)
    if count > int(_MOST_MAPS.read_text()) // 3:
      jax.clear_caches()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """A run's folder with people in it, which no test may change."""
  # Whatever imports the package does so after the hook above.
  from tests.runs import people_run

  return people_run.make(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
  """A copy of that, for whoever changes it."""
  return shutil.copytree(whole, tmp_path / "run")
