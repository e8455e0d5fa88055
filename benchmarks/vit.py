"""Images per second of vision transformers on a CPU, beside PyTorch on the same cores: inference and training steps.

    pip install -e '.[bench]'
    python benchmarks/vit.py [--rows 'lora'] [--out benchmarks/results/vit.json]

All in fp32, on resident images without augmentation. `torch_vit` has the peer: scaled_dot_product_attention, eager and
under torch.compile, of which the faster counts. Adapters (LoRA, rank 8) are on attention and MLPs, trained by InfoNCE
and AdamW; PyTorch's are beside frozen layers, too. Runs take turns and are kept as `train_step.py` says, which has the
options. `benchmarks/gpu.py --group transformers` measures the same on a GPU, in bfloat16.
"""

from collections.abc import Callable

import train_step
from beside_torch import Peer
from steps import Run
from vit_steps import OurRun, VitRow

ROWS = [
    VitRow(task="inference", network="vit-s/14", batch=16),
    VitRow(task="inference", network="vit-b/32", batch=32),
    VitRow(task="barlow", network="vit-s/14", batch=8),
    VitRow(task="lora", network="vit-b/32", batch=16),
]


def sides(row: VitRow) -> tuple[Callable[[], Run], Peer]:
    """A function that makes our run of a row, and the peer beside it."""
    return OurRun(row), Peer("make_run", (row,), [], module="torch_vit")


if __name__ == "__main__":
    train_step.main(__doc__, ROWS, sides)
