"""PyArrow, which comes with LanceDB; without it, an error names the extra that installs it."""

from tll_jax.errors import missing_package

try:
    import pyarrow as pa
    import pyarrow.compute as pc
except ImportError as error:
    raise missing_package("a gallery on disk", "find") from error

__all__ = ["pa", "pc"]
