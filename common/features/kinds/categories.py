"""Encodes categories and lists of them."""

from dataclasses import dataclass

import pyarrow as pa

from common.features.category import Encoding, HashEncoding, category_of, rows_of, rows_of_lists
from common.features.kinds.kind import KindEncoder, Outputs, chunks_of, column_vector_type, naming_column, wrong_type
from common.features.layout import Lookup


def _check_category(field: pa.Field, kind: pa.DataType, encoding: Encoding, *, lists: bool) -> None:
    before = "lists of " if lists else ""
    category = category_of(kind)
    if category is None:
        raise wrong_type(field, f"expected {before}strings or integers")
    if category == "nulls":
        return
    if encoding.accepts not in (None, category):
        raise wrong_type(field, f"expected {before}{encoding.accepts}, {encoding.reason}")
    if isinstance(encoding, HashEncoding) and encoding.accepts is None:
        # Strings and integers have different hashes, so that all columns of a table, in all files, need one of them.
        encoding.accepts = category
        encoding.reason = f"because other values of the same table are {category}, first in column '{field.name}'"


@dataclass(frozen=True)
class CategoryEncoder(KindEncoder):
    """Encodes categories."""

    lookup: Lookup
    encoding: Encoding

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        _check_category(field, field.type, self.encoding, lists=False)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in chunks_of(table, self.column):
            with naming_column(self.column, rows):
                out.ids[rows, self.lookup.begin : self.lookup.end] = rows_of(array, self.encoding)


@dataclass(frozen=True)
class CategoriesEncoder(KindEncoder):
    """Encodes lists of categories."""

    lookup: Lookup
    encoding: Encoding

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        if pa.types.is_null(field.type):
            return
        if (found := column_vector_type(field)) is None:
            raise wrong_type(field, "expected lists of strings or integers")
        _check_category(field, found[0], self.encoding, lists=True)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in chunks_of(table, self.column):
            with naming_column(self.column, rows):
                ids = out.ids[rows, self.lookup.begin : self.lookup.end]
                rows_of_lists(array, self.encoding, self.lookup.length, ids)
