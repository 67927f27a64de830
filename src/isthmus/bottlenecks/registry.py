"""The coders by name. Adding one: a file in the folder of its family, and a line here (or an entry point elsewhere)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points

from isthmus.bottlenecks.bits.bitnet import BitNet
from isthmus.bottlenecks.bits.comq import Comq
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.bits.floating import Fp6
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.bits.llm_int8 import OutlierSplit
from isthmus.bottlenecks.bits.paretoq import ParetoQ
from isthmus.bottlenecks.bits.rate_distortion import DeepCabac
from isthmus.bottlenecks.bits.squeezellm import SqueezeLlm
from isthmus.bottlenecks.codebook.lr2vq import LowDimensionalCodebook
from isthmus.bottlenecks.codebook.plain import PlainCodebook
from isthmus.bottlenecks.codebook.residual import ResidualCodebook
from isthmus.bottlenecks.codebook.vptq import Vptq
from isthmus.bottlenecks.coder import Coder
from isthmus.bottlenecks.rank.alds import Alds
from isthmus.bottlenecks.rank.factors import LowRank
from isthmus.bottlenecks.rank.maestro import Maestro
from isthmus.errors import unknown

CODERS: dict[str, Callable[[], Coder]] = {
    "deepcabac": DeepCabac,
    "finequant": FineQuant,
    "gptq": Gptq,
    "comq": Comq,
    "llm-int8": OutlierSplit,
    "squeezellm": SqueezeLlm,
    "fp6": Fp6,
    "paretoq": partial(ParetoQ, fit=True),
    "bitnet": BitNet,
    "codebook": PlainCodebook,
    "vptq": Vptq,
    "residual-codebook": ResidualCodebook,
    "lr2vq": LowDimensionalCodebook,
    "low-rank": LowRank,
    "alds": Alds,
    "maestro": Maestro,
}
CODERS.update({point.name: point.load() for point in entry_points(group="isthmus.coders")})


def coder(name: str) -> Coder:
    """Return a coder by name.

    Raises
    ------
    BadInput
        If there is none of that name.
    """
    if name not in CODERS:
        raise unknown("coder", name, CODERS)
    return CODERS[name]()
