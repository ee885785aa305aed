"""Data sets: toys with known log-density, tables, benchmarks, images, series, and files.

`TOYS`, `CONDITIONAL_TOYS`, `TABLES`, `BENCHMARKS`, `IMAGES` and `SERIES_DATASETS` are the
registries; `load` takes a table's name or a file's path, `load_benchmark`, `load_images` and
`load_series` take a name.

Example:
    >>> from cnf.datasets import TABLES, TOYS, load
    >>> load("iris").values.shape
    (150, 4)
    >>> TOYS["8gaussians"].sample(3, seed=0).shape
    (3, 2)
"""

if __name__ != "cnf.datasets":
    raise ImportError(
        f"Expected this package to be imported as cnf.datasets; got {__name__}: the bare name "
        "belongs to Hugging Face's datasets; install this project and import cnf.datasets."
    )

from cnf.datasets.benchmarks import BENCHMARKS, DATA_DIR, load_benchmark
from cnf.datasets.column_types import ColumnType
from cnf.datasets.columns import decode_column, encode_column
from cnf.datasets.conditional_toys import CONDITIONAL_TOYS, ConditionalToy
from cnf.datasets.degenerate import Degeneracy, collinear_columns, degeneracies
from cnf.datasets.files import MISSING, Missing, check_writable, read_table, write_table
from cnf.datasets.frames import frame_table, from_any, like_frame, table_frame
from cnf.datasets.images import IMAGES, Images, load_images
from cnf.datasets.physionet import physionet2012
from cnf.datasets.pictures import Picture, is_picture, read_picture, word_picture
from cnf.datasets.reading import ReadOptions
from cnf.datasets.series import SERIES_DATASETS, SeriesDataset, load_series
from cnf.datasets.series_toys import (
    LinearGaussianSeries,
    OrnsteinUhlenbeckSeries,
    PeriodicSeries,
    SeriesToy,
    SpiralSeries,
)
from cnf.datasets.splitting import Split, row_groups, split
from cnf.datasets.table import Table, closest
from cnf.datasets.tables import TABLES, load
from cnf.datasets.toy import Toy
from cnf.datasets.toys import TOYS

__all__ = [
    "BENCHMARKS",
    "CONDITIONAL_TOYS",
    "DATA_DIR",
    "IMAGES",
    "MISSING",
    "SERIES_DATASETS",
    "TABLES",
    "TOYS",
    "ColumnType",
    "ConditionalToy",
    "Degeneracy",
    "Images",
    "LinearGaussianSeries",
    "Missing",
    "OrnsteinUhlenbeckSeries",
    "PeriodicSeries",
    "Picture",
    "ReadOptions",
    "SeriesDataset",
    "SeriesToy",
    "SpiralSeries",
    "Split",
    "Table",
    "Toy",
    "check_writable",
    "closest",
    "collinear_columns",
    "decode_column",
    "degeneracies",
    "encode_column",
    "frame_table",
    "from_any",
    "is_picture",
    "like_frame",
    "load",
    "load_benchmark",
    "load_images",
    "load_series",
    "physionet2012",
    "read_picture",
    "read_table",
    "row_groups",
    "split",
    "table_frame",
    "word_picture",
    "write_table",
]
