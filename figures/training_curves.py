"""Pretraining and fine-tuning curves of all models and seeds.

python figures/training_curves.py STUDY [--out FILE]
"""

from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    draw_from(make_parser(__doc__).parse_args(), figures.training_curves, name="training_curves")
