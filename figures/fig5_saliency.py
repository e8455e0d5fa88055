"""The paper's Figure 5: saliency maps of matched pairs, best and worst ranks.

python figures/fig5_saliency.py STUDY [--arm NAME] [--out FILE]
"""

from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--arm", help="which arm's maps to draw; by default the study's first")
    arguments = parser.parse_args()
    draw_from(arguments, lambda study: figures.saliency(study, arguments.arm or study.arms[0]), name="fig5_saliency")
