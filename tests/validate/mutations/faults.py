"""All planted faults."""

from .comparison import COMPARISON_FAULTS
from .files import FILE_FAULTS
from .runtime import RUNTIME_FAULTS
from .structure import STRUCTURE_FAULTS
from .weights import WEIGHT_FAULTS

FAULTS = (*WEIGHT_FAULTS, *STRUCTURE_FAULTS, *FILE_FAULTS, *RUNTIME_FAULTS, *COMPARISON_FAULTS)
