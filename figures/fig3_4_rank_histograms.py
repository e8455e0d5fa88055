"""Figures 3 and 4 of [Munteanu 2022]: histograms of the match's rank, one for each model.

python figures/fig3_4_rank_histograms.py STUDY [--out FILE]
"""

from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    draw_from(make_parser(__doc__).parse_args(), figures.rank_histograms, name="fig3_4_rank_histograms")
