"""A study of one's own pairs: copy this file, set PAIRS, and change what you like.

export PAIRS=FOLDER
python -m tll_jax.main --config=configs/template.py --workdir=runs/mine      (or: tll run configs/template.py runs/mine)

PAIRS is a folder or zip with pairs.csv, whose columns left,right name picture files beside it. For two folders with
equal file names use `MatchingFolders(path=pairs)` in place of `PairsFromTable(path=pairs)`; `tll data PATH` says what
is recognized. 60 pairs train in three minutes on two CPU cores, most of which is compiling.

The values suit some hundred pairs; `--config.dotted.field=value` sets any field for one run, and a misspelled one is
answered with the names that there are.
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
"""Of the network's input, in pixels; 64 and more see more and take longer."""


def get_config(path: str = "$PAIRS") -> Study:
    """One model, pretrained with Barlow Twins on the pictures of the pairs and fine-tuned on the pairs."""

    def own_pairs() -> PairsFromTable:
        return PairsFromTable(
            path=path,
            table="pairs.csv",
            # DlibFaces() finds them (pip install 'tll_jax[faces]'), where pairs with faces shall not be tested.
            faces=None,
            face_overrides=None,
            # Nearly equal pictures never stand on both sides of the split.
            duplicates=NearDuplicates(),
            # A larger fraction of pictures that cannot be read ends the study.
            max_broken_fraction=0.05,
        )

    pretrain = Pretrain(
        # What is pretrained on: here the pictures of the training pairs; ClassFolder and ImageFolder take any folder.
        images=ImagesOfPairs(pairs=own_pairs()),
        # Or Classification() for a folder of classes, SimCLR(), VICReg().
        objective=BarlowTwins(projector=(256, 256, 256), redundancy_weight=0.0051, scale=0.1),
        # Crops: the fraction of the area that is kept, and how often one is mirrored.
        geometry=RandomResizedCrop(size=SIZE, scale=(0.3, 1.0), flip_probability=0.5, interpolation="bicubic"),
        # Colors, gray, blur and solarization of either view.
        augment_a=Photometric(blur_probability=0.5, blur_sigma=(0.1, 1.0)),
        augment_b=Photometric(blur_probability=0.1, blur_sigma=(0.1, 1.0), solarize_probability=0.2),
        # Rates are for a batch of 256 and scale with it.
        optimizer=Lars(learning_rate=0.3, bias_learning_rate=0.0072, weight_decay=1e-4, warmup_fraction=0.1),
        loop=Loop(
            num_steps=200,
            batch_size=32,
            log_every=20,
            save_every=200,
            # 0: at the end only.
            evaluate_every=0,
            # bfloat16 is worth it on accelerators.
            dtype="float32",
            # Three ways to need less memory; see docs/pod.md.
            remat=False,
            grad_accum_steps=1,
            fsdp_min_size=0,
        ),
        seed=0,
        # True pretrains on pictures of test pairs as well; never on which belong together.
        sees_test_images=False,
    )
    model = Model(
        # width 64 is the ResNet-18 of the literature; 16 trains at a thousand pictures a second on two CPU cores.
        backbone=ResNet(depth=18, width=16, small_stem=False, pooled_shortcuts=True),
        # Looks at whole maps, for look-alikes that have the same things in the same places; Projection() pools first.
        head=SpatialProjection(stages=(2, 3, 4)),
        pretrain=pretrain,
        # Weights from a file in place of pretraining; see docs/data.md.
        weights=None,
        finetune=finetuning(),
    )
    return Study(
        name="mine",
        pairs=own_pairs(),
        split=parts(),
        models={"barlow": model},
        # What needs no training, evaluated on the same pairs.
        systems={"pixels": Pixels(), "histogram": ColorHistogram(), "hog": Hog()},
        evaluate=Evaluate(geometry=Resize(size=SIZE), batch_size=256),
        # Of so many pairs a page with all methods, which takes some minutes to compile.
        explain=Explain(num_best=6, num_worst=4, num_pages=0),
        # Images with classes to ask frozen backbones about; none here.
        probe=None,
        # Fine-tunings: each with other initial weights of the head, other batches and other validation pairs.
        seeds=(0,),
        num_pretrainings=1,
        # Comparisons named beforehand, whose p-values are corrected for their number.
        planned=(("barlow", "hog"),),
        faces_included=(),
        # Chosen by the machine.
        num_threads=None,
        num_workers=None,
    )


def finetuning() -> Finetune:
    """On the pairs, with triplets."""
    return Finetune(
        # Or Contrastive(), InfoNCE(), MultiSimilarity().
        objective=Triplet(margin=0.2, mining="semi_hard"),
        geometry=RandomResizedCrop(size=SIZE, scale=(0.7, 1.0), flip_probability=0.0),
        # Both sides of a pair are changed apart; colors that tell pairs from each other should not change much.
        augment=Photometric(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.02, blur_probability=0.0),
        optimizer=AdamW(learning_rate=1e-3),
        loop=Loop(num_steps=100, batch_size=32, evaluate_every=50),
        # How many stages of the backbone stay as they were pretrained, counted from the stem: 0 to 5.
        frozen_stages=0,
        # Lora(rank=8, alpha=16.0, targets=("attention", "mlp")) trains low-rank adapters instead of dense layers and
        # 1x1 convolutions of the backbone; None trains the whole backbone.
        lora=None,
    )


def parts() -> Split:
    """Training, validation and test pairs."""
    return Split(
        # A fifth of the pairs is tested, or `num_test` of them.
        num_test=None,
        test_fraction=0.2,
        validation_fraction=0.1,
        seed=0,
        # "none": pairs with faces are not tested, which needs a detector in `pairs`.
        faces="include",
        train_on_faces=True,
        # "include": validate on pairs of any kind that are not tested, where few without faces are left.
        validation_faces=None,
    )
