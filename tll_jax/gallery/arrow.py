"""PyArrow, which comes with LanceDB; who lacks it is told what installs it."""

from tll_jax.errors import missing_package

try:
    import pyarrow as pa
    import pyarrow.compute as pc
except ImportError as error:
    raise missing_package("a gallery on disk", "find") from error

__all__ = ["pa", "pc"]
