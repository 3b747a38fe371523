"""Checks every shape annotation of the package while the tests run."""

import os

import jaxtyping

# Tests spend their time in compiling; tiny models gain nothing from LLVM's
# optimizations. Setting XLA_FLAGS brings them back.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

jaxtyping.install_import_hook("pdpo_jax", "beartype.beartype")
