"""The networks by name.

Sources: "2012" is the code that the Computer History Museum released in 2025 (github.com/computerhistory/
AlexNet-Source-Code, 2f8b81f; the numbers are its layer files), "paper" is Krizhevsky, Sutskever and Hinton,
NIPS 2012, "textbook" is the PyTorch edition of Dive into Deep Learning (github.com/ShusenTang/
Dive-into-DL-PyTorch, chapters 5.5 and 5.6).
"""

from dataclasses import replace

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture, Layer, Norm, Pool

# 2012, layers-145: norm comes before relu in conv1, a second norm (cnorm2) before pool in conv2. The window of
# the last conv1 position overhangs a 224 image by three zeros at the right and the bottom, none left or top.
ALEXNET = Architecture(
    name="alexnet",
    layers=(
        Layer("conv1", 96, 11, stride=4, padding=(0, 3), after=("norm", "pool", "relu")),
        Layer("conv2", 256, 5, padding=(2, 2), after=("relu", "norm", "cnorm", "pool")),
        Layer("conv3", 384, 3, padding=(1, 1), crosses=True),
        Layer("conv4", 384, 3, padding=(1, 1)),
        Layer("conv5", 256, 3, padding=(1, 1), after=("pool", "relu")),
        Layer("fc6", 4096, after=("relu", "dropout"), crosses=True),
        Layer("fc7", 4096, after=("relu", "dropout"), crosses=True),
        Layer("fc8", 1000, after=(), crosses=True, home=True),
    ),
    pixels="0..255 minus mean",
)

# paper, 3.3 to 3.5: relu first, one norm. Its formula does not divide alpha by the window's size; the code of
# 2012 and PyTorch do, so the same formula has alpha = 5 * 1e-4 here.
PAPER = replace(
    ALEXNET.changed(
        "alexnet-paper",
        conv1={"after": ("relu", "norm", "pool")},
        conv2={"after": ("relu", "norm", "pool")},
        conv5={"after": ("relu", "pool")},
    ),
    norm=Norm(5, alpha=5e-4, beta=0.75, k=2.0),
)


def half(architecture: Architecture) -> Architecture:
    """The network of one GPU beside two towers of a table: half as many kernels in each convolution but the last.

    As layers-145-half of 2012 is to layers-145; the fully connected rows keep their width (paper, footnote 2).
    """
    name = f"{architecture.name}-half"
    *convolutions, _ = (layer for layer in architecture.layers if layer.kernel)
    return replace(
        architecture.changed(name, **{layer.name: {"out": layer.out // 2} for layer in convolutions}),
        towers=1,
        counts=(1,),
        why_counts=f"{name} is the network of one GPU: it has one tower: --towers 1 ({architecture.name} has two)",
    )


HALF = half(ALEXNET)

# 2012, layers-150: conv2 and the hidden fully connected rows are wider, so that towers which never speak before
# fc8 have as many parameters.
ISOLATED = replace(
    ALEXNET.changed("alexnet-isolated", conv2={"out": 320}, fc6={"out": 8192}).crossing([]),
    counts=(2,),
    towers=2,
    why_counts="alexnet-isolated is two towers that never speak before fc8: it has two",
)

NO_NORM = replace(ALEXNET.without("norm"), name="alexnet-no-norm")  # 2012, layers-148

# 2012, layers-147: windows of 2 that do not overlap, and paddings that bring the maps back to size.
PLAIN_POOL = replace(
    ALEXNET.changed("alexnet-plain-pool", conv2={"padding": (1, 1)}, conv5={"padding": (0, 0)}),
    pool=Pool(2, 2, ceil=True),
)

# github.com/BVLC/caffe, models/bvlc_alexnet: the paper's order, 227 real pixels, k = 1, and norms that run over
# both groups' channels.
CAFFE = replace(
    PAPER.changed("caffe", conv1={"padding": (0, 0)}),
    size=227,
    counts=(2,),
    towers=2,
    why_counts="caffe is bvlc_alexnet, whose convolutions have two groups: it has two towers",
    norm=Norm(5, alpha=1e-4, beta=0.75, k=1.0, across_towers=True),
)

# torchvision.models.alexnet, after Krizhevsky, arXiv 1404.5997: one tower, and dropout before fc6 and fc7.
TORCHVISION = Architecture(
    name="torchvision",
    layers=(
        Layer("conv1", 64, 11, stride=4, padding=(2, 2), after=("relu", "pool")),
        Layer("conv2", 192, 5, padding=(2, 2), after=("relu", "pool")),
        Layer("conv3", 384, 3, padding=(1, 1)),
        Layer("conv4", 256, 3, padding=(1, 1)),
        Layer("conv5", 256, 3, padding=(1, 1), after=("relu", "pool", "dropout")),
        Layer("fc6", 4096, after=("relu", "dropout"), crosses=True),
        Layer("fc7", 4096, crosses=True),
        Layer("fc8", 1000, after=(), crosses=True, home=True),
    ),
    counts=(1,),
    why_counts="torchvision's AlexNet has one tower: --towers 1 (alexnet-paper is the one to split)",
)

# textbook, 5.6: no norm, no padding in conv1 (224 -> 54), grey images, ten classes.
FASHION = replace(
    ALEXNET.without("norm").changed(
        "fashion",
        conv1={"padding": (0, 0), "after": ("relu", "pool")},
        conv5={"after": ("relu", "pool")},
        fc8={"out": 10},
    ),
    channels=1,
    pixels="0..1",
)

# textbook, 5.5: LeNet-5 with sigmoids and max pooling.
LENET = Architecture(
    name="lenet",
    channels=1,
    size=28,
    layers=(
        Layer("conv1", 6, 5, after=("sigmoid", "pool")),
        Layer("conv2", 16, 5, after=("sigmoid", "pool")),
        Layer("fc3", 120, after=("sigmoid",), crosses=True),
        Layer("fc4", 84, after=("sigmoid",), crosses=True),
        Layer("fc5", 10, after=(), crosses=True, home=True),
    ),
    pool=Pool(2, 2),
    counts=(1,),
    why_counts="lenet has one tower: --towers 1",
)

_ALL = (FASHION, ALEXNET, PAPER, HALF, ISOLATED, NO_NORM, PLAIN_POOL, CAFFE, TORCHVISION, LENET)
PRESETS = {architecture.name: architecture for architecture in _ALL}


def presets(apart: bool = False) -> tuple[str, ...]:
    """The names, the default first; `apart`: of those whose two towers can have a device each."""
    return tuple(n for n, a in PRESETS.items() if not apart or (a.divides(2) and not a.norm.across_towers))


def preset(name: str, towers: int = 2, crosses: str | None = None) -> Architecture:
    """The named table shared by `towers`; `crosses` is "all", "none" or names joined by commas.

    UsageError if there is no such preset, row, or number of towers.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: no such preset (there are {', '.join(PRESETS)})")
    architecture = PRESETS[name]
    if crosses is not None:
        architecture = architecture.crossing(_crossing_names(architecture, crosses))
    return architecture.split(towers)


def _crossing_names(architecture: Architecture, crosses: str) -> list[str]:
    if crosses == "all":
        return [layer.name for layer in architecture.layers[1:]]
    names = [] if crosses == "none" else [name.strip() for name in crosses.split(",")]
    if "" in names:
        raise UsageError(f"--crosses {crosses}: a name is missing (names joined by commas, all, or none)")
    return names
