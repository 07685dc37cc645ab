"""`--set section.field=value[,value...]`: checked against the protocol, typed by its fields."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.shared.errors import UserError, unknown
from pipelines.shared.specs import kinds_of, sections

# Shared by all arms of one comparison: swept, they would be several comparisons. The rest changes
# an arm.
SHARED = (
    *("corpus", "start", "model", "gold", "sft", "sampling", "evaluation", "compute", "task"),
    "weights",
)


def parse(arguments: Iterable[str], protocol: Any) -> dict[str, tuple[Any, ...]]:
    """The values given for each setting, by "section.field".

    Raises:
        UserError: no such setting (with the nearest right name), a value of the wrong type, or
            several values of a setting that all arms share.
    """
    given: dict[str, tuple[Any, ...]] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not text:
            raise UserError(f"--set {argument}: write it as section.field=value, e.g. dpo.beta=0.1")
        if name in given:
            raise UserError(f"--set {name} is given twice: write all its values in one, {name}=a,b")
        kind = field_type(name, protocol)
        values = tuple(_value(name, part, kind) for part in text.split(","))
        if len(set(values)) < len(values):
            raise UserError(f"--set {argument}: a value is repeated")
        if len(values) > 1 and name.partition(".")[0] in SHARED:
            raise UserError(
                f"--set {argument}: all arms of one comparison share {name}; give one value, "
                "and run the command once for each"
            )
        given[name] = values
    return given


def field_type(name: str, protocol: Any) -> type:
    """The type of a setting. Raises `UserError` where there is none of that name."""
    known: dict[str, Any] = {}
    for section, spec in sections(protocol).items():
        own: Any = type(spec)
        known |= {f"{section}.{field}": kind for field, kind in kinds_of(own).items()}
        known.pop(f"{section}.section", None)  # its name, not a setting
    if name not in known:
        raise unknown("setting", name, known)
    kind = known[name]
    assert isinstance(kind, type)
    return kind


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--set {name}={text}: expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"--set {name}={text}: expected {kind.__name__}") from None


def apply(protocol: Any, values: Mapping[str, Any]) -> Any:
    """`protocol` with the given settings. Raises `UserError` where a value is out of range."""
    given: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        given.setdefault(section, {})[field] = value
    now = sections(protocol)
    changed: dict[str, Any] = {
        section: dataclasses.replace(now[section], **fields) for section, fields in given.items()
    }
    own = {field.name for field in dataclasses.fields(protocol)}
    arms = {name: changed.pop(name) for name in list(changed) if name not in own}
    if arms:
        changed["arms"] = {**protocol.arms, **arms}
    return dataclasses.replace(protocol, **changed)


def check_read(given: Iterable[str], sections: Mapping[str, str], chosen: Iterable[str]) -> None:
    """Raise `UserError` for a setting of arms that are not run: it would change nothing.

    Args:
        sections: the section of each arm that has one, by the arm's name.
        chosen: names of the arms that are run.
    """
    for name in given:
        section = name.partition(".")[0]
        owners = [arm for arm, own in sections.items() if own == section]
        if owners and not {*owners} & {*chosen}:
            raise UserError(
                f"--set {name}: none of the arms that are run reads it; "
                f"add --arms {' or '.join(owners)}"
            )


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, in the order in which they were given."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def describe(values: Mapping[str, Any]) -> str:
    """Settings as on the command line: "dpo.learning_rate=0.0003 dpo.epochs=2"."""
    return " ".join(f"{name}={text_of(value)}" for name, value in values.items())


def text_of(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def folder_name(
    experiment: str,
    scale: str,
    arms: str,
    seeds: int,
    given: Mapping[str, Sequence[Any]],
    imports: Iterable[str] = (),
) -> str:
    """`name-scale` and what differs from the default, so that no report overwrites another.

    Args:
        arms: which, "" for the default ones.
        imports: names of arms that were trained elsewhere.
    """
    parts = [f"arms={arms}"] if arms else []
    parts += [f"import={name}" for name in imports]
    parts += [f"seeds={seeds}"] if seeds != 1 else []
    parts += [
        f"{name}={','.join(text_of(value) for value in values)}"
        for name, values in sorted(given.items())
    ]
    suffix = "".join(f"+{part}" for part in parts)
    if len(suffix) > 120:
        suffix = f"+{hashlib.sha256(suffix.encode()).hexdigest()[:12]}"
    return f"{experiment}-{scale}{suffix}"
