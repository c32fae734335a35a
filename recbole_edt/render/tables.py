"""One table, kept as values: to and from JSON, and shown as Markdown, CSV or LaTeX (booktabs).

Names and texts in it may come from data or from a language model and are never trusted: each form escapes what it
would obey.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ValidationError

from recbole_edt.cleaning import harmless
from recbole_edt.errors import DataError
from recbole_edt.files import read_json, write_text

Value: TypeAlias = "str | int | float | bool | None | tuple[float | None, float | None]"
"""A cell: text, a number, nothing, or a pair (mean and deviation, or the two ends of an interval)."""

PAIRS = {"deviation": ("{} ± {}", ("", " deviation")), "interval": ("{} to {}", (" low", " high"))}
"""How a pair is shown, and what its two columns of CSV are called."""
MISSING = "n/a"
BestOf: TypeAlias = Literal["column", "row"]

_LATEX = {
    "\\": r"\textbackslash{}",
    **{one: rf"\{one}" for one in "&%$#_{}"},
    **{one: f"{{{one}}}" for one in "[]*"},  # at the start of a row they would belong to the end of the one before
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "–": "--",
    "α": r"$\alpha$",
    "τ": r"$\tau$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
}
"""What LaTeX would obey, or cannot show with its usual fonts."""


@dataclass(frozen=True)
class Column:
    """What stands over a column, and how its values are shown.

    Attributes:
        name: heading, with its unit where it has one, such as ``time (s)``.
        group: heading over several neighbours with the same group, such as the domain.
        decimals: of numbers; None shows whole numbers with commas between thousands.
        best: ``max`` or ``min`` marks the best value in bold, ``""`` none.
        form: ``plain``, ``signed`` (+0.01), ``percent`` (of a share), ``p`` (``< 0.0001`` below what is shown); on a
            page ``share`` draws a bar of a number between 0 and 1, and ``tag`` an oval round a word.
        pair: ``deviation`` or ``interval`` where the values are pairs.
    """

    name: str
    group: str = ""
    decimals: int | None = None
    best: Literal["", "max", "min"] = ""
    form: Literal["plain", "signed", "p", "percent", "share", "tag"] = "plain"
    pair: Literal["", "deviation", "interval"] = ""

    @property
    def heading(self) -> str:
        """Group and name."""
        return f"{self.group} {self.name}".strip()


@dataclass(frozen=True)
class ResultTable:
    """Values with what is needed to show them.

    Attributes:
        name: short, for files and anchors, such as ``table-2``.
        title: heading.
        columns: a `Column` each, or a text for a column of that name without decimals.
        rows: a `Value` per column each; numpy's scalars become Python's, and what is no finite number None.
        note: what a reader must know to read it right.
        command: what makes it again.
        best_of: ``column`` marks the best down each column, ``row`` the best along each row.
        tones: what a page or terminal tells by colour: a word per row, ``good``, ``pale`` or ``""``; not kept in files.
    """

    name: str
    title: str
    columns: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    command: str = ""
    best_of: BestOf = "column"
    tones: Sequence[str] = ()

    def __post_init__(self) -> None:
        columns = tuple(Column(one) if isinstance(one, str) else one for one in self.columns)
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "rows", tuple(tuple(map(_plain, row)) for row in self.rows))
        if uneven := [place for place, row in enumerate(self.rows, 1) if len(row) != len(columns)]:
            raise ValueError(f"table {self.name}: row {uneven[0]} has not {len(columns)} values")

    def shown(self) -> list[list[str]]:
        """The cells as texts."""
        return [[show(value, column) for value, column in zip(row, self.columns, strict=True)] for row in self.rows]

    def best(self) -> np.ndarray:
        """``[rows, columns]`` True for the best values, for all that are shown alike; a lone value is no best."""
        scores = np.array([[_score(*cell) for cell in zip(row, self.columns, strict=True)] for row in self.rows])
        scores = scores.reshape(len(self.rows), len(self.columns))
        axis = 0 if self.best_of == "column" else 1
        compared = (~np.isnan(scores)).sum(axis, keepdims=True) > 1
        top = np.where(np.isnan(scores), -np.inf, scores).max(axis, keepdims=True, initial=-np.inf)
        return (scores == top) & compared

    def is_numeric(self, place: int) -> bool:
        """Whether the column at this place holds numbers or pairs of them, and nothing else."""
        values = [row[place] for row in self.rows if row[place] is not None]
        return bool(values) and not any(isinstance(value, (str, bool)) for value in values)

    # ---- files -----------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Everything, to be read again by `from_json`."""
        kept = {key: value for key, value in asdict(self).items() if key != "tones"}
        return json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "table") -> ResultTable:
        """The inverse of `to_json`.

        Raises: DataError naming ``where`` if the text is no such table.
        """
        try:
            stored = _Stored.model_validate_json(text)
            return cls(**{key: getattr(stored, key) for key in _Stored.model_fields})
        except ValidationError as error:
            found = (("".join(f"{one}." for one in fault["loc"])[:-1], fault["msg"]) for fault in error.errors())
            problem = "; ".join(dict.fromkeys(f"{place}: {why}".removeprefix(": ") for place, why in found))
        except ValueError as error:
            problem = str(error)
        raise DataError(f"{where}: no table of results ({problem}); make it again or delete it")

    def markdown(self) -> str:
        """A Markdown table with its note below; the title is left to the page."""
        headings = [escape_markdown(column.heading) for column in self.columns]
        lines = [headings, ["---"] * len(headings), *_marked(self, escape_markdown, "**{}**")]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return text + (f"\n\n{escape_markdown(self.note)}" if self.note else "")

    def csv(self) -> str:
        """Unrounded values; a pair takes two columns."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        endings = [PAIRS[column.pair][1] if column.pair else ("",) for column in self.columns]
        named = zip(self.columns, endings, strict=True)
        writer.writerow([column.heading + ending for column, several in named for ending in several])
        for row in self.rows:
            cells = zip(row, self.columns, strict=True)
            writer.writerow([one for value, column in cells for one in _csv_values(value, column)])
        return file.getvalue()

    def latex(self) -> str:
        """A table with booktabs' rules, ready to paste; needs ``\\usepackage{booktabs}``."""
        aligned = "".join("r" if self.is_numeric(place) else "l" for place in range(len(self.columns)))
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(self.title)}}}"]
        lines += [rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', self.name)}}}"]
        lines += [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", *_latex_groups(self.columns)]
        lines += [_latex_row(escape_latex(column.name) for column in self.columns), r"\midrule"]
        for row, values in zip(_marked(self, escape_latex, r"\textbf{{{}}}"), self.rows, strict=True):
            lines.append(_latex_row(map(_with_minus, row, values)))
        lines += [r"\bottomrule", r"\end{tabular}"]
        if self.note:
            lines += [r"\par\smallskip", rf"{{\footnotesize {escape_latex(self.note)}}}"]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def save(self, folder: Path, stem: str = "table") -> None:
        """Write ``stem`` as ``.json``, ``.md``, ``.csv`` and ``.tex`` into ``folder``."""
        parts = [f"# {escape_markdown(self.title)}", self.markdown(), code([self.command]) if self.command else ""]
        texts = {"json": self.to_json(), "md": "\n\n".join(filter(None, parts)) + "\n"}
        texts |= {"csv": self.csv(), "tex": self.latex()}
        for suffix, text in texts.items():
            write_text(folder / f"{stem}.{suffix}", text)


class _Stored(BaseModel, extra="forbid", strict=True):
    """What `ResultTable.to_json` wrote."""

    name: str = ""
    title: str = ""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    command: str = ""
    best_of: BestOf = "column"


def read(path: Path) -> ResultTable:
    """A table that `ResultTable.save` wrote.

    Raises: DataError if the file is missing or no such table.
    """
    return ResultTable.from_json(json.dumps(read_json(path)), str(path))


# ---- cells -------------------------------------------------------------------------------------------------------


def show(value: Value, column: Column) -> str:
    """One cell as text."""
    if isinstance(value, tuple):
        form = PAIRS[column.pair or "deviation"][0]
        # A mean over one seed has no deviation.
        return _shown(value[0], column) if value[1] is None else form.format(*(_shown(one, column) for one in value))
    return _shown(value, column)


def _shown(value: Any, column: Column) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    sign = "+" if column.form == "signed" else ""
    if column.decimals is None:
        return format(value, f"{sign},") if isinstance(value, int) else format(value, f"{sign},.6g")
    if column.form == "p" and value < 10**-column.decimals:
        return f"< {10**-column.decimals:.{column.decimals}f}"
    return format(value, f"{sign},.{column.decimals}{'%' if column.form == 'percent' else 'f'}")


def _score(value: Value, column: Column) -> float:
    """What decides on the best: the number as it is shown, the larger the better; NaN where nothing is compared."""
    number = value[0] if isinstance(value, tuple) else value
    if not column.best or isinstance(number, (str, bool)) or number is None:
        return math.nan
    digits = (column.decimals or 0) + 2 * (column.form == "percent")
    rounded = float(number) if column.decimals is None else round(float(number), digits)
    return rounded if column.best == "max" else -rounded


def _plain(value: Any) -> Value:
    """The cell with Python's own types, and None for what is no number."""
    if isinstance(value, (tuple, list, np.ndarray)):
        first, second = value
        return _number(first), _number(second)
    if isinstance(value, (str, bool, np.bool_)) or value is None:
        return bool(value) if isinstance(value, np.bool_) else value
    return _number(value)


def _number(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _marked(table: ResultTable, escape: Any, bold: str) -> Iterator[list[str]]:
    """Escaped cells, the best of them in bold."""
    for row, best in zip(table.shown(), table.best(), strict=True):
        yield [bold.format(escape(text)) if b else escape(text) for text, b in zip(row, best, strict=True)]


def _csv_values(value: Value, column: Column) -> list[Any]:
    if not column.pair:
        return [show(value, column) if isinstance(value, tuple) else value]
    return list(value) if isinstance(value, tuple) else [value, None]


def groups_of(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Each group of neighbours with its width."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.group and column.group:
            found[-1] = column.group, found[-1][1] + 1
        else:
            found.append((column.group, 1))
    return found


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """The row of groups with a rule below each; nothing without groups."""
    groups = groups_of(columns)
    if not any(name for name, _ in groups):
        return []
    cells, rules, first = [], [], 1
    for name, width in groups:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(name)}}}" if name else "")
        rules += [rf"\cmidrule(lr){{{first}-{first + width - 1}}}"] if name else []
        first += width
    return [_latex_row(cells), "".join(rules)]


def _with_minus(text: str, value: Value) -> str:
    """The cell of a number with minus signs for hyphens."""
    return text if isinstance(value, str) else re.sub(r"-(?=\d)", "$-$", text)


def _latex_row(cells: Any) -> str:
    return " & ".join(cells) + r" \\"


# ---- text --------------------------------------------------------------------------------------------------------


def escape_latex(text: Any) -> str:
    """Text that LaTeX shows as it is, on one line."""
    return "".join(_LATEX.get(one, one) for one in harmless(" ".join(str(text).split())))


def escape_markdown(text: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    one_line = harmless(" ".join(str(text).split()))
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def code(lines: Any) -> str:
    """An indented block of Markdown: unlike a fenced one, no content can end it. Each line keeps its own indent."""
    return "\n".join("    " + harmless(" ".join(str(line).splitlines())).rstrip() for line in lines)
