"""Figure 5 of [Munteanu 2022]: saliency maps of pairs of best and of worst rank; or one pair by all methods.

python figures/fig5_saliency.py STUDY [--model NAME] [--out FILE]
python figures/fig5_saliency.py STUDY --all-methods [--pair ID] [--model NAME] [--out FILE]
"""

from tll_jax.cli.arguments import FirstName
from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="which model's maps to draw; by default the study's first")
    parser.add_argument("--arm", dest="model", action=FirstName)
    parser.add_argument("--all-methods", action="store_true", help="one pair by every method that the folder has")
    parser.add_argument("--pair", metavar="ID", help="with --all-methods: which; by default the first")
    arguments = parser.parse_args()
    if arguments.all_methods:
        draw_from(
            arguments,
            lambda study: figures.all_methods(study, arguments.model or study.models[0], arguments.pair),
            name="fig5_all_methods",
        )
    else:
        draw_from(
            arguments, lambda study: figures.saliency(study, arguments.model or study.models[0]), name="fig5_saliency"
        )
