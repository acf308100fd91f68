"""Optional fused kernels, each behind the signature of the plain order that it stands for.

Importing this imports no Triton: ``unavailable`` says, for a device and a dtype, why the kernels
cannot serve. Under Triton's interpreter (``TRITON_INTERPRET=1`` in the environment before Triton is
imported) they run on CPU, for tests.

On an H100 they were held against the float64 reference and timed (see the README's benchmark). On another GPU, check
them first, by ``pytest tests/layers/kernels``; then measure, and refit what ``launch.py`` keeps as data.
"""

from .availability import unavailable
from .operators import fused_position

__all__ = ["fused_position", "unavailable"]
