"""Checks every shape annotation of the package while the tests run."""

import jaxtyping

jaxtyping.install_import_hook("pdpo_jax", "beartype.beartype")
