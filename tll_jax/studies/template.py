"""A study of your own pairs: copy this file, set PAIRS, and change what you like.

export PAIRS=FOLDER
python -m tll_jax.main --config=configs/template.py --workdir=runs/mine      (or: tll run configs/template.py runs/mine)

PAIRS is a folder or zip with pairs.csv, whose columns left,right name picture files beside it. For two folders with
equal file names use `MatchingFolders(path=path)` in place of `PairsFromTable(path=path)`; `tll data PATH` prints the
recognized layout. 60 pairs train in three minutes on two CPU cores, most of which is compiling.

The values suit a few hundred pairs; `--config.dotted.field=value` sets any field for one run, and the error for a
misspelled field lists the existing ones.
"""

from tll_jax.augment.recipes import Photometric
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.pair_folders import PairsFromTable
from tll_jax.data.splits import Split
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Study
from tll_jax.systems.baselines import ColorHistogram, Hog, Pixels
from tll_jax.training.optimizers import AdamW, Lars

SIZE = 48
"""Side of the network's input, in pixels; larger inputs show more detail and take longer."""


def get_config(path: str = "$PAIRS") -> Study:
    """A study of one model, pretrained with Barlow Twins on the pictures of the pairs and fine-tuned on the pairs."""

    def own_pairs() -> PairsFromTable:
        return PairsFromTable(
            path=path,
            table="pairs.csv",
            # DlibFaces() detects faces (pip install 'tll_jax[faces]'), to keep pairs with faces out of the test set.
            faces=None,
            face_overrides=None,
            # Pairs with nearly equal pictures are never split between training and testing.
            duplicates=NearDuplicates(),
            # The study stops if a larger fraction of the pictures cannot be read.
            max_broken_fraction=0.05,
        )

    pretrain = Pretrain(
        # Pretraining images: here those of the training pairs; ClassFolder and ImageFolder read any folder.
        images=ImagesOfPairs(pairs=own_pairs()),
        # Alternatives: SimCLR(), VICReg(), and Classification() for a folder of classes.
        objective=BarlowTwins(projector=(256, 256, 256), redundancy_weight=0.0051, scale=0.1),
        # Random crops: `scale` is the range of area fractions.
        geometry=RandomResizedCrop(size=SIZE, scale=(0.3, 1.0), flip_probability=0.5, interpolation="bicubic"),
        # Color jitter, grayscale, blur and solarization of either view.
        augment_a=Photometric(blur_probability=0.5, blur_sigma=(0.1, 1.0)),
        augment_b=Photometric(blur_probability=0.1, blur_sigma=(0.1, 1.0), solarize_probability=0.2),
        # Learning rates are for a batch of 256 and scale with the batch size.
        optimizer=Lars(learning_rate=0.3, bias_learning_rate=0.0072, weight_decay=1e-4, warmup_fraction=0.1),
        loop=Loop(
            num_steps=200,
            batch_size=32,
            log_every=20,
            save_every=200,
            # 0: only at the end.
            evaluate_every=0,
            # "bfloat16" is faster on accelerators.
            dtype="float32",
            # Three ways to save memory; see docs/pod.md.
            remat=False,
            grad_accum_steps=1,
            fsdp_min_size=0,
        ),
        seed=0,
        # True also pretrains on pictures of test pairs, but never on their pairing.
        sees_test_images=False,
    )
    model = Model(
        # width=64 is the standard ResNet-18; 16 trains at a thousand pictures a second on two CPU cores.
        backbone=ResNet(depth=18, width=16, small_stem=False, pooled_shortcuts=True),
        # Reads whole feature maps, for look-alikes with equal parts at equal positions; Projection() pools first.
        head=SpatialProjection(stages=(2, 3, 4)),
        pretrain=pretrain,
        # Weights from a file, in place of pretraining; see docs/backbones.md.
        weights=None,
        finetune=finetuning(),
    )
    return Study(
        name="mine",
        pairs=own_pairs(),
        split=parts(),
        models={"barlow": model},
        # Baselines without training, evaluated on the same pairs.
        systems={"pixels": Pixels(), "histogram": ColorHistogram(), "hog": Hog()},
        evaluate=Evaluate(geometry=Resize(size=SIZE), batch_size=256),
        # num_pages: pairs that get a page with all saliency methods, which take minutes to compile.
        explain=Explain(num_best=6, num_worst=4, num_pages=0),
        # Images with classes for kNN and linear probes of frozen backbones; none here.
        probe=None,
        # One fine-tuning a seed, each with other initial weights of the head, batches and validation pairs.
        seeds=(0,),
        num_pretrainings=1,
        # Planned comparisons, whose p-values are corrected for their number.
        planned=(("barlow", "hog"),),
        faces_included=(),
        # None: chosen for the machine.
        num_threads=None,
        num_workers=None,
    )


def finetuning() -> Finetune:
    """Fine-tuning on the pairs with the triplet loss."""
    return Finetune(
        # Alternatives: Contrastive(), InfoNCE(), MultiSimilarity().
        objective=Triplet(margin=0.2, mining="semi_hard"),
        geometry=RandomResizedCrop(size=SIZE, scale=(0.7, 1.0), flip_probability=0.0),
        # Each side is augmented on its own; keep color changes small where colors distinguish pairs.
        augment=Photometric(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.02, blur_probability=0.0),
        optimizer=AdamW(learning_rate=1e-3),
        loop=Loop(num_steps=100, batch_size=32, evaluate_every=50),
        # Number of frozen stages of the backbone, counted from the stem: 0 to 5.
        frozen_stages=0,
        # Lora(rank=8, alpha=16.0, targets=("attention", "mlp")) trains low-rank adapters instead of dense layers and
        # 1x1 convolutions of the backbone; None trains the whole backbone.
        lora=None,
    )


def parts() -> Split:
    """The split into training, validation and test pairs."""
    return Split(
        # The test set is a fifth of the pairs, or `num_test` of them.
        num_test=None,
        test_fraction=0.2,
        validation_fraction=0.1,
        seed=0,
        # "none" keeps pairs with faces out of the test set, which needs a face detector in `pairs`.
        faces="include",
        train_on_faces=True,
        # "include" also validates on pairs with faces, if few pairs without are left.
        validation_faces=None,
    )
