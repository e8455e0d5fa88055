"""Figure 2 of [Munteanu 2022]: pairs that the face filter drops.

python figures/fig2_excluded.py STUDY [--out FILE]
"""

from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    draw_from(make_parser(__doc__).parse_args(), figures.excluded, name="fig2_excluded")
