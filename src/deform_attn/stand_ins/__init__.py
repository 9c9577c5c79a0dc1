"""Stand-ins for the compiled extensions that other projects import: importing this package makes them importable.

They are `MultiScaleDeformableAttention`, `groundingdino._C`, `detrex._C` and `mmcv._ext`. An extension that is
installed comes first.
"""

from deform_attn.stand_ins.finder import StandInWarning, install

__all__ = ["StandInWarning"]

install()
