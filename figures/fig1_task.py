"""The paper's Figure 1: for the picture on the left, which of the others looks most alike?

python figures/fig1_task.py STUDY [--out FILE]
"""

import argparse
import sys
from pathlib import Path

from tll_jax.report import StudyFolder, figures, style


def main() -> None:
    """Draws the figure from the folder of a finished study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY", help="the --workdir of a finished study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG file; by default in STUDY/figures")
    arguments = parser.parse_args()
    try:
        study = StudyFolder(arguments.study)
        figure = figures.task(study)
    except (FileNotFoundError, ValueError, KeyError) as error:
        sys.exit(str(error.args[0] if isinstance(error, KeyError) else error))
    path = arguments.out or study.path / "figures" / "fig1_task.png"
    style.save(figure, path)
    print(path)


if __name__ == "__main__":
    main()
