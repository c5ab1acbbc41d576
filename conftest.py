"""What every test run shares: JAX on the CPU with strict dtypes, and examples of README and docs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

jax.config.update("jax_numpy_dtype_promotion", "strict")

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()
