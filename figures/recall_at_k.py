"""Recall at k of every system: the fraction of queries whose match is among the k nearest, against k.

python figures/recall_at_k.py STUDY [--out FILE]
"""

from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    draw_from(make_parser(__doc__).parse_args(), figures.recall_at_k, name="recall_at_k")
