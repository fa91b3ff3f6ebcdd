"""Which stored names form which gate matrix: the families, as data, and their reader."""

from ckptshrink.layouts.files import load_layouts
from ckptshrink.layouts.recognition import Recognition, fits_nothing, recognise

__all__ = ["Recognition", "fits_nothing", "load_layouts", "recognise"]
