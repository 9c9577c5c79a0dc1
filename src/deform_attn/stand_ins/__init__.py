"""Stand-ins for the compiled extensions that other projects import: importing this package makes them importable.

An extension that is installed goes first. The names are those of `finder.NAMES`.
"""

from deform_attn.stand_ins.finder import StandInWarning, install

__all__ = ["StandInWarning"]

install()
