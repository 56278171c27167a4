"""How many values a Parquet file declares, from its footer.

pyarrow tells it by an interface that ends the process, uncatchably, over a damaged description of a column; and reading
the values is no way to find out, as what is repeated takes no space in a file and all memory.
"""

from __future__ import annotations

import struct
from typing import IO, Any, Final

_MAGIC: Final = b"PAR1"
_LARGEST: Final = 2**26  # bytes


def declared_values(stream: IO[bytes]) -> int:
    """The values of all columns in all row groups: `FileMetaData.row_groups[*].columns[*].meta_data.num_values` of
    the Parquet format's Thrift definition. Raises ValueError for what is no footer.

    >>> import io, pyarrow as pa, pyarrow.parquet as pq
    >>> stream = io.BytesIO()
    >>> pq.write_table(pa.table({"a": [1, 2], "b": [[1, 2, 3], [4]]}), stream)
    >>> declared_values(stream)
    6
    """
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    if tail[4:] != _MAGIC or not 0 < (length := struct.unpack("<I", tail[:4])[0]) <= min(_LARGEST, size - 8):
        raise ValueError("no footer at its end")
    stream.seek(size - 8 - length)
    try:
        groups = _Compact(stream.read(length)).value(_STRUCT)[4]
        return sum(column[3][5] for group in groups for column in group[1])
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("a damaged footer") from error


_STRUCT: Final = 12


class _Compact:
    """Thrift's compact protocol: structs as dicts by field number, lists, integers; what else there is, skipped."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _unsigned(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
        return number | byte << shift

    def _signed(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)

    def value(self, kind: int) -> Any:
        """The value of a type at the present place, which moves behind it."""
        if kind in (1, 2):  # a field's truth is its type
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            self._at += 8
            return None
        if kind == 8:
            length = self._unsigned()
            self._at += length
            return None
        if kind == 9:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            if count > len(self._data) or head & 15 in (1, 2):  # a footer has no list of truths
                raise ValueError("a damaged footer")
            return [self.value(head & 15) for _ in range(count)]
        if kind == _STRUCT:
            return self._struct()
        raise ValueError("a damaged footer")

    def _struct(self) -> dict[int, Any]:
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self.value(head & 15)
        return fields
