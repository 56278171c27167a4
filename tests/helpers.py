"""What several test modules use: the tables' columns as types, the norms by example."""

from __future__ import annotations

from bnsmooth_cli import kinds

#: Kind -> column -> type.
SCHEMAS = {kind.name: {name: column.type for name, column in kind.columns.items()} for kind in kinds.KINDS}
#: The kinds that have a figure.
DRAWN = [kind.name for kind in kinds.KINDS if kind.figure]
