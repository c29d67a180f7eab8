"""Which channels go: the protocol, the registry, the classic criteria, and one folder for each paper's system.

`secateurs.methods()` returns the names of all methods, and `secateurs.methods.PFF` is one of them.
"""

import sys
from types import ModuleType

from secateurs.methods.activations import APoZ, Variance
from secateurs.methods.aofp import AOFP
from secateurs.methods.coring import CORING
from secateurs.methods.criteria import L1, L2, BNScale, Index, Random
from secateurs.methods.criterion import Criterion
from secateurs.methods.damage import Damage
from secateurs.methods.epruner import EPruner
from secateurs.methods.fpgm import FPGM
from secateurs.methods.gradients import Fisher, GroupTaylor, Taylor
from secateurs.methods.group_norms import LAMP, GroupL1, GroupL2
from secateurs.methods.limits import Limits
from secateurs.methods.method import Method, Task
from secateurs.methods.npn import NPN
from secateurs.methods.onestep import OneStep
from secateurs.methods.oracle import Oracle
from secateurs.methods.pff import PFF
from secateurs.methods.pruner import Pruner, TrainingMethod
from secateurs.methods.registry import methods, register, resolve
from secateurs.methods.selection import Selection
from secateurs.methods.stripes import L2Stripes

__all__ = [
    "AOFP", "CORING", "FPGM", "L1", "L2", "LAMP", "NPN", "PFF", "APoZ", "BNScale", "Criterion", "Damage", "EPruner", "Fisher",
    "GroupL1", "GroupL2", "GroupTaylor", "Index", "L2Stripes", "Limits", "Method", "OneStep", "Oracle", "Pruner", "Random",
    "Selection", "Task", "Taylor", "TrainingMethod", "Variance", "methods", "register", "resolve",
]  # fmt: skip


class _Callable(ModuleType):
    """A package that can be called. Both `sc.methods()` and `import secateurs.methods as m; m.PFF` read the attribute `methods`
    of `secateurs`. Once a subpackage is imported, the import system binds it to that name, after all code of the package has
    run, and `import … as` takes whatever is bound there. So one object has to be both, and the language's documented way to
    that is to assign a module's `__class__` (Data model, "Customizing module attribute access").
    """

    def __call__(self) -> tuple[str, ...]:
        return methods()


sys.modules[__name__].__class__ = _Callable
