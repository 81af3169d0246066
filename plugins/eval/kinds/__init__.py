"""The kinds of benchmarks: what each one's YAML may say, and how its pictures and lists become cases."""

from rbctl.plugins.eval.kinds.combinations import Combinations
from rbctl.plugins.eval.kinds.customconcept101 import CustomConcept101
from rbctl.plugins.eval.kinds.dreambench import DreamBench
from rbctl.plugins.eval.kinds.kind import Kind
from rbctl.plugins.eval.kinds.menagerie import Menagerie
from rbctl.plugins.eval.kinds.scenes import Scenes

KINDS: dict[str, type[Kind]] = {
    "dreambench": DreamBench,
    "customconcept101": CustomConcept101,
    "scenes": Scenes,
    "combinations": Combinations,
    "menagerie": Menagerie,
}
