"""Architecture: one point of the search space, frozen and hashable, with a versioned JSON form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..schema import read_json
from .choices import ACTIVATIONS, LAYERS, MLP_ACTIVATIONS, NORMS, RATIOS, SHORTCUTS, width

VERSION = 1


def _one_of(what: str, value, allowed) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"unknown {what} {value!r}; known: {', '.join(allowed)}")


@dataclass(frozen=True, order=True)
class Block:
    """``Act(Layer(Norm(H))) + H`` (paper equation 1)."""

    norm: str
    layer: str
    activation: str

    def __post_init__(self):
        _one_of("norm", self.norm, NORMS)
        _one_of("layer", self.layer, LAYERS)
        _one_of("activation", self.activation, ACTIVATIONS)


ZERO = Block("none", "zero", "identity")


@dataclass(frozen=True)
class MlpLayer:
    """``Act(W h + b)`` (paper equation 2): ``ratio`` of K0 units, or a fixed ``width``."""

    ratio: float | None
    activation: str
    width: int | None = None

    def __post_init__(self):
        _one_of("MLP activation", self.activation, MLP_ACTIVATIONS)
        if (self.ratio is None) == (self.width is None):
            raise InputError("an MLP layer has either a ratio or a width")
        if self.ratio is not None:
            # Tenths as other programs compute them, such as 0.30000000000000004, are snapped.
            near = [r for r in RATIOS if type(self.ratio) in (int, float) and abs(r - self.ratio) < 1e-9]
            if not near:
                raise InputError(f"MLP ratio {self.ratio!r} is none of {', '.join(map(str, RATIOS))}")
            object.__setattr__(self, "ratio", near[0])
        if self.width is not None and (type(self.width) is not int or self.width < 1):
            raise InputError(f"MLP width {self.width!r} is not an integer >= 1")

    def units(self, k0: int) -> int:
        return self.width if self.width is not None else width(self.ratio, k0)


def fixed_mlp(*widths: int, activation: str = "relu") -> tuple[MlpLayer, ...]:
    """A hand-made MLP such as the paper's [200, 80]."""
    return tuple(MlpLayer(None, activation, w) for w in widths)


@dataclass(frozen=True)
class Architecture:
    """``behavior``: L_a blocks (none without history); ``interactions``: tuples of field positions;
    ``mlp``: L_c layers; ``shortcut``: ``"se"`` or ``"none"``."""

    behavior: tuple[Block, ...] = ()
    interactions: tuple[tuple[int, ...], ...] = ()
    mlp: tuple[MlpLayer, ...] = ()
    shortcut: str = "se"

    def __post_init__(self):
        _one_of("shortcut", self.shortcut, SHORTCUTS)

    def canonical(self) -> Architecture:
        """The one form shared by all architectures that compute this function by construction.

        A zero block has no norm and the identity; interactions are sorted, distinct and of order >= 2
        (order 1 repeats a field that h_0 has already).
        """
        behavior = tuple(ZERO if b.layer == "zero" else b for b in self.behavior)
        found = {tuple(sorted(set(i))) for i in self.interactions}
        interactions = tuple(sorted((i for i in found if len(i) >= 2), key=interaction_key))
        return replace(self, behavior=behavior, interactions=interactions)

    @property
    def has_fixed_mlp(self) -> bool:
        return any(layer.width is not None for layer in self.mlp)

    def to_dict(self) -> dict:
        return {
            "version": VERSION,
            "behavior": [{"norm": b.norm, "layer": b.layer, "activation": b.activation} for b in self.behavior],
            "interactions": [list(i) for i in self.interactions],
            "mlp": [{"width": m.width, "activation": m.activation} if m.ratio is None else
                    {"ratio": m.ratio, "activation": m.activation} for m in self.mlp],
            "shortcut": self.shortcut,
        }

    @classmethod
    def from_dict(cls, data: dict) -> Architecture:
        """Inverse of ``to_dict``; ``InputError`` names a wrong version, key or operation."""
        if not isinstance(data, dict):
            raise InputError("architecture: not a JSON object")
        if data.get("version") != VERSION or type(data["version"]) is not int:
            raise InputError(f"architecture: version {data.get('version')!r} is not supported "
                             f"(this is version {VERSION})")
        for key in data:
            if key not in ("version", "behavior", "interactions", "mlp", "shortcut"):
                raise InputError(f"architecture: unknown key {key!r}")
        try:
            behavior = []
            for index, b in enumerate(data["behavior"]):
                with _naming(f"architecture: behavior block {index}"):
                    _only(b, "norm", "layer", "activation")
                    behavior.append(Block(b["norm"], b["layer"], b["activation"]))
            mlp = []
            for index, m in enumerate(data["mlp"]):
                with _naming(f"architecture: mlp layer {index}"):
                    _only(m, "ratio", "width", "activation")
                    mlp.append(MlpLayer(m.get("ratio"), m["activation"], m.get("width")))
            interactions = []
            for index, fields in enumerate(data["interactions"]):
                if not isinstance(fields, list) or not all(isinstance(f, int) and not isinstance(f, bool) for f in fields):
                    raise InputError(f"architecture: interaction {index} is {fields!r}, not a list of field indices")
                interactions.append(tuple(fields))
            return cls(tuple(behavior), tuple(interactions), tuple(mlp), data.get("shortcut", "se"))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"architecture: missing or malformed entry {error}") from None

    def save(self, path: str | Path) -> None:
        from ..atomic import write_json
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        try:
            return cls.from_dict(read_json(path))
        except InputError as error:
            raise InputError(error if str(error).startswith(str(path)) else f"{path}: {error}") from None


def interaction_key(fields: tuple[int, ...]) -> tuple:
    """Sort key of interactions: by order, then by fields."""
    return len(fields), fields


class _naming:
    """Prefixes an InputError with the part it belongs to."""

    def __init__(self, part: str):
        self.part = part

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self.part}: {error}") from None
        return False


def _only(entry: dict, *known: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{entry!r} is not a JSON object")
    for key in entry:
        if key not in known:
            raise InputError(f"unknown key {key!r}")
