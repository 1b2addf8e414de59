"""Claim: towers that hand each other activations learn better than towers that do not speak, for the bytes it costs.

    python experiments/crossings.py [--seeds 4] [--epochs 1] [--preset fashion] [--full --devices cuda:0,cuda:1]

Source: nets 145 and 150 of 2012 (layers-145.cfg, layers-150.cfg): top-1 errors of 0.40664 and 0.41828 in ImageNet's
validation set, ten views, at equally many parameters; and what is noted of net 127, that without the crossing at conv3
it is significantly worse. Two towers with the crossings of 2012 (conv3, fc6, fc7; fc8 always reads
both), with none, with none and as many parameters (conv2 and fc6 wider, as in net 150), with all, and without each one
of 2012's. Printed with the bytes that a step exchanges, measured and held against the table. A row that does not cross
has half of the weights, so all but net 150's comparison is one of parameters as well.
`--preset alexnet` is trained by the recipe of 2012 (`--epochs 91` in its full version).
Expected: at this size differences of a point at most, most of them not shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from conduct import Experiment, conduct, prepare
from measures import LAST
from setting import Options as CommonOptions
from setting import Setting, Size, about
from trials import Variant, as_large, trained_as
from verdicts import Claim

from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset
from splitnet.options import guarded, option, parse

SMALL = Size(epochs=1)
FULL = Size(scale="1", side=None, epochs=5, seeds=5)

OF_2012 = ("conv3", "fc6", "fc7")
USUAL, NONE, ISOLATED, ALL = "2012's crossings", "no crossing", "no crossing, wider", "every crossing"
COMPARABLE = "The direction, and bytes to the byte. Ten grey classes; the small version's network is narrow."


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    preset: str = option("fashion", "the network", ("fashion", "alexnet", "alexnet-paper"))


def isolated(table: Architecture) -> Architecture:
    """As net 150 is made from net 145: about as many parameters, and no crossing before fc8."""
    out = {layer.name: layer.out for layer in table.layers}
    wide_conv2 = out["conv2"] * 5 // 4 // table.towers * table.towers
    rows = {"conv2": {"out": wide_conv2}, "fc6": {"out": 2 * out["fc6"]}}
    return table.changed(f"{table.name}-isolated", **rows).crossing([])


def without(row: str) -> str:
    return f"without {row}'s"


def tables_of(table: Architecture) -> dict[str, Architecture]:
    tables = {
        USUAL: table,
        NONE: table.crossing([]),
        ISOLATED: isolated(table),
        ALL: table.crossing(layer.name for layer in table.layers[1:]),
    }
    tables |= {without(row): table.crossing(set(OF_2012) - {row}) for row in OF_2012}
    return tables


def variants(setting: Setting, name: str = "fashion", full: bool = False) -> list[Variant]:
    recipe, tables, whole = trained_as(name, setting, full), tables_of(setting.table(name)), tables_of(preset(name))
    gains = {key: as_large(table, whole[key]) for key, table in tables.items()} if name != "fashion" else {}
    return [Variant(name=key, table=table, recipe=recipe, gains=gains.get(key, {})) for key, table in tables.items()]


def claim(text: str, source: str, published: str, more: str, less: str) -> Claim:
    return Claim(
        text=text, source=source, published=published, measure=LAST, more=more, less=less, comparable=COMPARABLE
    )


CLAIMS = [
    claim("crossings help at equal parameters", "2012, nets 145 and 150", "+1.16 points top-1", USUAL, ISOLATED),
    claim("crossings help", "2012, nets 145 and 150", "", USUAL, NONE),
    claim("crossings in every row help more", "our question", "", ALL, USUAL),
    claim("conv3's crossing helps", "2012, net 127", "significantly", USUAL, without("conv3")),
    claim("fc6's crossing helps", "our question", "", USUAL, without("fc6")),
    claim("fc7's crossing helps", "our question", "", USUAL, without("fc7")),
]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/crossings.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    found = variants(setting, options.preset, options.full)
    conduct(Experiment(name="crossings", text=__doc__ or "", variants=found, claims=CLAIMS), options, setting)


if __name__ == "__main__":
    guarded(main)
