"""Names of dtypes, by which tables and models keep the types of their columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # functions import it, since it takes long
    import pyarrow as pa

ARROW_DECIMAL = re.compile(r"decimal(\d+)\((\d+), (-?\d+)\)")
ARROW_DICTIONARY = re.compile(r"dictionary<values=(.+), indices=(\w+), ordered=(\d)>")
ARROW_TIMESTAMP = re.compile(r"timestamp\[(\w+), tz=(.+)\]")


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, by which `decode_column` finds it again.

    Example:
        >>> import pandas as pd
        >>> dtype_name(pd.StringDtype("python")), dtype_name(np.dtype("M8[us]"))
        ('string[python]', 'datetime64[us]')
    """
    import pandas as pd

    if isinstance(dtype, pd.StringDtype):
        storage = str(dtype.storage)
        if str(dtype) == "str" or storage == "pyarrow_numpy":  # pandas 3, and before
            return "str[python]" if storage == "python" else "str"
        return f"string[{storage}]"
    if isinstance(dtype, pd.ArrowDtype):  # pandas' own name for Arrow's text is another dtype's
        return re.sub(r"^string\[", "utf8[", str(dtype))
    if isinstance(dtype, pd.SparseDtype):  # pandas cannot parse a fill value
        return f"Sparse[{dtype_name(dtype.subtype)}]"
    if isinstance(dtype, pd.DatetimeTZDtype):  # pandas names dateutil's zones otherwise
        return re.sub(r"tzfile\('(.+)'\)", r"dateutil/\1", str(dtype))
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype)


def named_dtype(name: str) -> Any:
    """Return the dtype of a name, with Arrow's types that pandas cannot parse.

    Example:
        >>> named_dtype("decimal128(9, 2)[pyarrow]"), named_dtype("Int64")
        (decimal128(9, 2)[pyarrow], Int64Dtype())
    """
    import pandas as pd

    if not name.endswith("[pyarrow]"):
        return pd.api.types.pandas_dtype(name)
    return pd.ArrowDtype(_arrow_type(name.removesuffix("[pyarrow]")))


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    if found := ARROW_DECIMAL.fullmatch(name):
        width, precision, scale = map(int, found.groups())
        return (pa.decimal128 if width == 128 else pa.decimal256)(precision, scale)
    if found := ARROW_DICTIONARY.fullmatch(name):
        values, indices, ordered = found.groups()
        return pa.dictionary(_arrow_type(indices), _arrow_type(values), ordered == "1")
    if found := ARROW_TIMESTAMP.fullmatch(name):
        return pa.timestamp(found[1], found[2])
    return pa.type_for_alias(name)


def string_dtype(name: str) -> Any:
    """Return the dtype of text: `str` is the default of pandas 3, and of objects before.

    Example:
        >>> string_dtype("object"), string_dtype("string[python]").storage
        (dtype('O'), 'python')
    """
    import pandas as pd

    if name == "object":
        return np.dtype(object)
    family, _, storage = name.rstrip("]").partition("[")
    if family == "string":
        return pd.StringDtype(storage or None)
    if pd.Series(["a"]).dtype == object:
        return np.dtype(object)
    return pd.StringDtype(storage or None, na_value=np.nan)


def arrow_pandas_dtype(type: pa.DataType) -> Any:
    """Return pandas' nullable dtype of Arrow's whole numbers and booleans; None for others.

    Example:
        >>> import pyarrow
        >>> arrow_pandas_dtype(pyarrow.int8()), arrow_pandas_dtype(pyarrow.string())
        (Int8Dtype(), None)
    """
    import pandas as pd

    name = str(type)
    if re.fullmatch(r"u?int\d+", name):
        return pd.api.types.pandas_dtype(name.replace("i", "I").replace("u", "U"))
    return pd.BooleanDtype() if name == "bool" else None
