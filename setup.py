"""Ships configs/ as pdpo_jax/configs; pyproject.toml has everything else."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=["pdpo_jax*"]),
    "pdpo_jax.configs",
  ],
  package_dir={"pdpo_jax.configs": "configs"},
)
