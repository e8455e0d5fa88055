"""Figure 1 of [Munteanu 2022], the task: a query, and the candidates among which its look-alike is found.

python figures/fig1_task.py STUDY [--out FILE]
"""

from tll_jax.report import figures
from tll_jax.report.figure_script import draw_from, make_parser

if __name__ == "__main__":
    draw_from(make_parser(__doc__).parse_args(), figures.task, name="fig1_task")
