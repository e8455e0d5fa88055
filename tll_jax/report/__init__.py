"""What a finished study looks like: figures, the results table and the page, from the study's folder alone."""

from tll_jax.report.figures import write_figures
from tll_jax.report.html import write_report
from tll_jax.report.table import results_markdown
from tll_jax.study.folder import StudyFolder

__all__ = ["StudyFolder", "results_markdown", "write_figures", "write_report"]
