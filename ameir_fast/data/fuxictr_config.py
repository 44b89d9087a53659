"""FuxiCTR's ``dataset_config.yaml``: which files, which columns, how each is a feature.

Format: FuxiCTR's documentation ("Configuration") and its ``FeatureProcessor`` for the defaults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

KINDS = ("categorical", "sequence", "numeric")
#: What a model doesn't read, or what has vectors of its own.
_NOT_READ = {"meta": "for metrics only", "embedding": "a vector, which is no category"}
_LARGEST = 4 << 20
_COPY = re.compile(r"copy_from\((.+)\)")


@dataclass(frozen=True)
class Feature:
    """An active feature. ``column``: where its values are; ``share``: the feature whose vocabulary it shares."""

    name: str
    kind: str
    dtype: str
    column: str
    fill_na: object | None
    share: str | None
    min_count: int
    splitter: str
    max_len: int
    newest: bool  # padding "pre": too long a sequence loses its beginning, not its end


@dataclass(frozen=True)
class Config:
    """One entry of the file; ``data``: path of each split that it names; ``left_out``: features that are not read."""

    path: Path
    name: str
    data_format: str
    separator: str
    data: dict[str, str]
    label: str
    features: tuple[Feature, ...]
    left_out: dict[str, str]

    def vocabulary(self, feature: Feature) -> str:
        """The feature whose name the vocabulary has."""
        by_name, seen = {f.name: f for f in self.features}, {feature.name}
        while feature.share is not None:
            if feature.share not in by_name or by_name[feature.share].kind == "numeric":
                raise InputError(
                    f"feature {feature.name!r}: share_embedding is {feature.share!r}, no active feature with ids"
                )
            feature = by_name[feature.share]
            if feature.name in seen:
                raise InputError(f"feature {feature.name!r}: share_embedding leads back to itself")
            seen.add(feature.name)
        return feature.name


def read_config(path: Path, dataset_id: str | None) -> Config:
    """The entry ``dataset_id`` of a file, or of the files in a folder as FuxiCTR takes one.

    Raises ``InputError`` naming the file for what is missing, malformed or not supported.
    """
    try:
        import yaml
    except ImportError:
        raise InputError(
            "FuxiCTR's configuration is YAML: install PyYAML (pip install 'ameir-fast[fuxictr]')"
        ) from None
    entries: dict[str, tuple[Path, object]] = {}
    for file in _files(path):
        data = file.read_bytes()
        if len(data) > _LARGEST:
            raise InputError(f"{file}: has more than {_LARGEST:,} bytes")
        try:
            content = yaml.safe_load(data)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            line = getattr(error, "problem_mark", None)
            where = f"line {line.line + 1}: " if line is not None else ""
            why = " ".join(str(getattr(error, "problem", None) or error).split())
            raise InputError(f"{file}: {where}is not YAML ({why})") from None
        if not isinstance(content, dict):
            raise InputError(f"{file}: holds no data set; its first level names them")
        entries |= {str(name): (file, entry) for name, entry in content.items()}
    if dataset_id is None and len(entries) == 1:
        dataset_id = next(iter(entries))
    if dataset_id not in entries:
        what = "names several data sets" if dataset_id is None else f"names no data set {dataset_id!r}"
        raise InputError(f"{path}: {what}: {', '.join(entries)}")
    file, entry = entries[dataset_id]
    try:
        return _config(file, dataset_id, entry)
    except InputError as error:
        raise InputError(f"{file}: {dataset_id}: {error}") from None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        return [path]
    found = [p for p in (path / "dataset_config.yaml",) if p.is_file()]
    found = found or sorted((path / "dataset_config").glob("*.yaml"))
    if not found:
        raise InputError(f"{path}: holds no dataset_config.yaml")
    return found


def _config(path: Path, name: str, entry: object) -> Config:
    if not isinstance(entry, dict):
        raise InputError("is not an object")
    data_format = _take(entry, "data_format", str, "csv")
    if data_format not in ("csv", "parquet"):
        raise InputError(f"data_format {data_format!r} is neither csv nor parquet")
    data = {}
    for split in ("train", "valid", "test"):
        if (given := _take(entry, f"{split}_data", str, None)) is not None:
            data[split] = given
    if set(data) not in ({"train"}, {"train", "valid", "test"}):
        raise InputError("names neither train_data, valid_data and test_data, nor train_data alone; without files to validate "
                         "by, remove test_data, and train_data is split")
    labels = entry.get("label_col")
    labels = labels if isinstance(labels, list) else [labels]
    if len(labels) != 1 or not isinstance(labels[0], dict):
        raise InputError("label_col does not name one label")
    columns = _take(entry, "feature_cols", list, None)
    if not columns:
        raise InputError("feature_cols names no features (data whose ids FuxiCTR has made already has none)")
    features, left_out = [], {}
    least = _take(entry, "min_categr_count", int, 1)
    for column in columns:
        if not isinstance(column, dict):
            raise InputError(f"feature_cols: {column!r} is not an object")
        names = column.get("name")
        for feature_name in names if isinstance(names, list) else [names]:
            if not isinstance(feature_name, str) or not feature_name:
                raise InputError(f"feature_cols: name {feature_name!r} is no text")
            if not column.get("active", True):
                continue
            if (kind := column.get("type")) in _NOT_READ:
                left_out[feature_name] = f"{kind}, {_NOT_READ[kind]}"
                continue
            if feature_name in [f.name for f in features]:
                raise InputError(f"feature {feature_name!r} is there twice")
            features.append(_feature(feature_name, column, least))
    return Config(path, name, data_format, _take(entry, "sep", str, ","), data, _take(labels[0], "name", str),
                  tuple(features), left_out)


def _feature(name: str, column: dict, least: int) -> Feature:
    try:
        kind, dtype = _take(column, "type", str), _take(column, "dtype", str, "str")
        if kind not in KINDS:
            raise InputError(f"type {kind!r} is none of {', '.join(KINDS)}")
        if dtype not in ("str", "int", "float"):
            raise InputError(f"dtype {dtype!r} is none of str, int, float")
        if (processor := column.get("category_processor")) is not None:
            raise InputError(f"category_processor {processor!r} is not supported")
        source = name
        if (preprocess := column.get("preprocess")) is not None:
            copied = _COPY.fullmatch(str(preprocess))
            if copied is None:
                raise InputError(f"preprocess {preprocess!r} is code of its own: add the column to the files first")
            source = copied[1].strip("'\" ")
        padding = _take(column, "padding", str, "post")
        return Feature(
            name, kind, dtype, source, _fill_na(column.get("fill_na"), kind, dtype),
            _take(column, "share_embedding", str, None), _take(column, "min_categr_count", int, least), _take(column, "splitter", str, "^"),
            _take(column, "max_len", int, 0), padding == "pre",
        )
    except InputError as error:
        raise InputError(f"feature {name!r}: {error}") from None


def _fill_na(value: object, kind: str, dtype: str) -> object | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise InputError(f"fill_na is {value!r}")
    if value is None or (value == "" and (kind == "numeric" or dtype != "str")):
        return None
    if kind == "sequence" or (dtype == "str" and kind != "numeric"):
        return value
    try:
        return int(value) if dtype == "int" and kind != "numeric" else float(value)
    except ValueError:
        raise InputError(f"fill_na is {value!r}, but dtype {dtype}") from None


def _take(entry: dict, key: str, kind: type, default: object = ...):
    value = entry.get(key)
    if value is None:
        if default is ...:
            raise InputError(f"{key} is missing")
        return default
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)) or value == "":
        raise InputError(f"{key} is {value!r}")
    return value
