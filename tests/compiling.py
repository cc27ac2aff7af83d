"""XLA's flags for programs that run once: they are compiled in a third of the time."""

from importlib.metadata import version

_NUMBERS = tuple(int(part) for part in version("jaxlib").split(".")[:2])
QUICKLY = "--xla_backend_optimization_level=0"
if _NUMBERS < (0, 11):  # later ones do not know the flag, and a flag that is not known ends XLA
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
