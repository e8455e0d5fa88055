"""Reports of a finished study, made from its folder alone: figures, results table and HTML page."""

from tll_jax.report.figures import write_figures
from tll_jax.report.html import write_report
from tll_jax.report.table import results_markdown
from tll_jax.study.folder import StudyFolder

__all__ = ["StudyFolder", "results_markdown", "write_figures", "write_report"]
