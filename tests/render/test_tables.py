"""Tables of results: values by hand, every form escaped, and what is written is read again."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.errors import DataError
from recbole_edt.render import figures
from recbole_edt.render.tables import Column, ResultTable, code, escape_latex, read

TABLE = ResultTable(
    name="table 2",
    title="Overall comparison",
    columns=(
        Column("model"),
        Column("ndcg@10", "food", 4, "max", pair="deviation"),
        Column("mrr@10", "food", 4, "max"),
        Column("time (s)", decimals=1, best="min"),
        Column("p", decimals=4, form="p"),
        Column("difference", decimals=4, form="signed", pair="interval"),
        Column("users"),
    ),
    rows=(
        ("SAS_Rec & co", (0.25, 0.01), 0.50001, 12.0, 0.00001, (-0.01, 0.02), 12345),
        ("LLM*EDT|x", (0.5, None), np.float32(0.5), 3.25, np.float64(0.03), (0.01, 0.02), np.int64(7)),
        ("none", None, float("nan"), None, None, None, None),
    ),
    note="n = 10 % <of all>",
    command="python run_edt.py compare",
)


def test_cells_are_shown_with_their_decimals_signs_and_pairs():
    assert TABLE.shown()[0] == ["SAS_Rec & co", "0.2500 ± 0.0100", "0.5000", "12.0", "< 0.0001", "-0.0100 to +0.0200",
                                "12,345"]  # fmt: skip
    assert TABLE.shown()[1][1:] == ["0.5000", "0.5000", "3.2", "0.0300", "+0.0100 to +0.0200", "7"]
    assert TABLE.shown()[2] == ["none"] + ["n/a"] * 6


def test_all_values_that_are_shown_like_the_best_are_the_best():
    # columns: model, ndcg (0.5 wins), mrr (0.50001 and 0.5 look alike), time (the smaller), and none for the others
    assert TABLE.best()[:, 1:4].tolist() == [[False, True, False], [True, True, True], [False, False, False]]
    assert not TABLE.best()[:, [0, 4, 5, 6]].any()


def test_the_best_may_be_marked_along_each_row_and_a_lone_value_never_is():
    columns = ("group", Column("A", decimals=2, best="max"), Column("B", decimals=2, best="max"))
    rows = (("short", 0.1, 0.2), ("long", 0.3, None))
    assert ResultTable("g", "Groups", columns, rows, best_of="row").best().tolist() == [
        [False, False, True],
        [False] * 3,
    ]
    assert ResultTable("g", "Groups", columns, rows[:1]).best().sum() == 0
    assert ResultTable("g", "Groups", columns, ()).best().shape == (0, 3)


def test_markdown_escapes_what_it_would_obey():
    text = TABLE.markdown()
    assert text.splitlines()[0] == "| model | food ndcg@10 | food mrr@10 | time (s) | p | difference | users |"
    assert "| SAS\\_Rec &amp; co | 0.2500 ± 0.0100 | **0.5000** |" in text
    assert "| LLM\\*EDT\\|x | **0.5000** |" in text
    assert text.endswith("n = 10 % &lt;of all&gt;")


def test_a_block_of_code_keeps_the_indent_of_its_lines_and_no_line_ends_it():
    assert code(["a:", "  b: 1", "", "c\n# d"]).splitlines() == ["    a:", "      b: 1", "    ", "    c # d"]


def test_csv_holds_unrounded_values_and_two_columns_for_a_pair():
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[0] == ["model", "food ndcg@10", "food ndcg@10 deviation", "food mrr@10", "time (s)", "p",
                       "difference low", "difference high", "users"]  # fmt: skip
    assert rows[1] == ["SAS_Rec & co", "0.25", "0.01", "0.50001", "12.0", "1e-05", "-0.01", "0.02", "12345"]
    assert rows[2][1:3] == ["0.5", ""]
    assert rows[3] == ["none", *[""] * 8]


def test_latex_has_booktabs_rules_groups_and_escaped_text():
    lines = TABLE.latex().splitlines()
    assert lines[2:6] == [
        r"\caption{Overall comparison}",
        r"\label{tab:table-2}",
        r"\begin{tabular}{lrrrrrr}",
        r"\toprule",
    ]
    assert lines[6:8] == [r" & \multicolumn{2}{c}{food} &  &  &  &  \\", r"\cmidrule(lr){2-3}"]
    assert lines[10].startswith(r"SAS\_Rec \& co & 0.2500 $\pm$ 0.0100 & \textbf{0.5000} & 12.0 & \textless{} 0.0001 &")
    assert lines[10].endswith(r"& $-$0.0100 to +0.0200 & 12,345 \\")
    assert r"{\footnotesize n = 10 \% \textless{}of all\textgreater{}}" in lines
    assert lines[-1] == r"\end{table}"


def test_latex_obeys_nothing_in_a_name():
    assert escape_latex("\\input{x}\n~^$#†\"") == (
        r"\textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{}\$\#$^\dagger$\char34{}"
    )


def test_latex_takes_no_first_cell_for_the_space_after_the_row_before():
    lines = ResultTable("t", "T", ["a"], [("[b] tree",), ("*c",)]).latex().splitlines()
    assert [line for line in lines if line.endswith(r"\\")][1:] == [r"{[}b{]} tree \\", r"{*}c \\"]


def test_a_saved_table_is_read_again_as_it_was(tmp_path):
    TABLE.save(tmp_path)
    assert read(tmp_path / "table.json") == TABLE
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == TABLE.csv()
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == TABLE.latex()
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("# Overall comparison\n\n| model |")


values = st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.tuples(st.floats(), st.floats()))


@given(st.lists(st.tuples(values, values), max_size=4), st.sampled_from([None, 0, 3]), st.text())
def test_any_table_survives_json_and_can_be_shown(rows, decimals, text):
    table = ResultTable("x", text, (Column(text), Column("b", text, decimals, "max")), rows, text)
    assert ResultTable.from_json(table.to_json()) == table
    assert len(list(csv.reader(io.StringIO(table.csv(), newline="")))) >= 1
    for row in table.markdown().splitlines()[2 : 2 + len(rows)]:
        assert row.startswith("| ") and row.endswith(" |")
    assert table.latex().count(r"\bottomrule") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no table of results"),
        ("{", "no table of results"),
        ('{"name": "x"}', "columns"),
        ('{"columns": ["a"], "rows": []}', "no table of results"),
        ('{"columns": [{"name": "a"}], "rows": [[{}]]}', r"rows\.0\.0\."),
        ('{"columns": [{"name": "a"}], "rows": [[1, 2]]}', "row 1 has not 1 values"),
        ('{"columns": [{"name": "a"}], "rows": [], "evil": 1}', "evil: Extra inputs"),
        ('{"columns": [{"name": 3}], "rows": []}', r"columns\.0\.name: .*string"),
        ('{"columns": [{"name": "a", "best": "most"}], "rows": []}', r"columns\.0\.best: .*'max' or 'min'"),
        ('{"columns": [{"name": "a", "evil": 1}], "rows": []}', "evil"),
        ('{"title": 3, "columns": [{"name": "a"}], "rows": [], "evil": 1}', "(?s)title.*evil"),
        ('{"title": 3, "columns": [], "rows": []}', "title: .*string"),
    ],
)
def test_what_is_no_table_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        ResultTable.from_json(text, "table.json")


# ---- figures -----------------------------------------------------------------------------------------------------


def test_a_figure_is_written_as_png_and_pdf_and_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure, (left, right) = figures.new(n_columns=2)
    left.plot([1, 2], [1, 4], label=figures.plain("_cost $"), **figures.line(9))
    right.bar([1], [2], **figures.bar(9))
    figures.label_axes(left, "tau", "time (s)", "A $ title")
    figures.legend(left)
    figures.legend(right)
    figures.save(figure, tmp_path / "tau 0.9")
    assert (tmp_path / "tau 0.9.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "tau 0.9.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 2
    assert dict(matplotlib.rcParams) == before
    assert left.get_legend() is not None and right.get_legend() is None
