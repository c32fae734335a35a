"""Tables, tests and figures from saved ranks: values by hand, and refusals of what cannot be compared."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from recbole_edt.errors import ConfigError, DataError
from recbole_edt.evaluate import results, significance
from recbole_edt.evaluate.metrics import per_user
from recbole_edt.evaluate.results import ModelResult
from recbole_edt.evaluate.significance import bootstrap_interval, compare_seeds, holm
from recbole_edt.render import figures
from recbole_edt.report import result_tables
from recbole_edt.report.curves import _draw_run, curves_metric, plot_curves
from recbole_edt.report.result_tables import comparison_table, group_table, print_table, write_metrics


def ranks(higher, users=None, domains=("film", "book"), split_hash="s", candidates_hash="c", **columns):
    n = len(higher)
    users = [f"u{i}" for i in range(n)] if users is None else users
    table = pd.DataFrame(
        {
            "user": users,
            "item": [f"i{user}" for user in users],
            "domain": [domains[i % 2] for i in range(n)],
            "higher": higher,
            "tied": 0,
            **columns,
        }
    )
    table.attrs = {
        "domains": list(domains),
        "candidates": "sampled-100",
        "candidates_hash": candidates_hash,
        "seen_items": "masked",
        "split_hash": split_hash,
    }
    return table


def epochs(*phases):
    """Phases as (name, losses); the validation metric grows by 0.01 per epoch."""
    rows = [(name, loss) for name, losses in phases for loss in losses]
    metric = 0.01 * np.arange(len(rows))
    return pd.DataFrame(rows, columns=["phase", "train_loss"]).assign(**{"ndcg@10": metric})


def two_runs():
    return [
        ModelResult("SASRec", ranks([0, 0, 50, 50]), epochs(("train", [7.0, 6.0])), results.EPOCH_CAP, 2, 12.3, 1000),
        ModelResult("LLMEDT", ranks([0, 1, 0, 50]), epochs(("pretrain", [0.7, 0.6]), ("finetune", [0.5]))),
    ]


def compare(one, other, metric="ndcg@10"):
    return compare_seeds([one], [other], metric)


def paired_tests(runs, reference, metric="ndcg@10"):
    return significance.paired_tests_over_seeds({run.name: [run] for run in runs}, reference, metric)


def printed(runs, width=None, terminal=False, **options):
    """What print_table writes, to a terminal of a width or into a pipe."""

    class Terminal(io.StringIO):
        def isatty(self):
            return terminal

    file = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm-256color")
        if width:
            patch.setenv("COLUMNS", str(width))
        print_table(runs, "toy, test", file=file, **options)
    return file.getvalue()


def test_the_comparison_has_domains_in_order_then_everyone():
    table = comparison_table(two_runs())
    assert table.index.tolist() == ["SASRec", "LLMEDT"]
    assert [domain for domain, _ in table.columns[::3]] == ["film", "book", "overall"]
    assert [metric for _, metric in table.columns[:3]] == ["hit@10", "ndcg@10", "mrr@10"]
    assert table.loc["SASRec", ("film", "hit@10")] == 0.5  # users 0 and 2: positions 1 and 51
    assert table.loc["LLMEDT", ("book", "mrr@10")] == 0.25  # users 1 and 3: positions 2 and 51
    assert table.loc["LLMEDT", ("overall", "hit@10")] == 0.75


def test_another_cut_off_gives_other_columns():
    assert comparison_table(two_runs(), k=1).loc["LLMEDT", ("overall", "hit@1")] == 0.5


def test_a_pipe_gets_plain_text_with_the_best_starred():
    text = printed(two_runs(), offline="generator: offline")
    lines = [line.rstrip() for line in text.splitlines()]
    assert "\x1b" not in text
    assert lines[0] == "toy, test: 4 users, candidates: 100 stored negatives of the target's domain"
    assert lines[1] == "generator: offline"
    sasrec = next(line for line in lines if line.startswith("SASRec†"))
    llmedt = next(line for line in lines if line.startswith("LLMEDT "))
    assert sasrec.split()[1:] == [
        "0.5000", "0.5000", "0.5000", "0.5000*", "0.5000*", "0.5000*", "0.5000", "0.5000", "0.5000"
    ]  # fmt: skip
    assert llmedt.split()[1:4] == ["1.0000*", "1.0000*", "1.0000*"]
    assert "* best of its column" in lines
    assert "† ended by its epoch cap, not by early stopping: it may not have converged" in lines


def test_models_that_print_alike_are_both_the_best():
    # 29,999 of 30,000 users hit and all of them: 0.99997 and 1 are both shown as 1.0000.
    runs = [ModelResult(name, ranks([0] * 29_990 + [last] * n + [0] * (10 - n))) for name, last, n in
            (("nearly", 99, 1), ("all", 0, 0), ("less", 99, 10))]  # fmt: skip
    assert result_tables.results_table(runs).best()[:, -1].tolist() == [True, True, False]


def test_a_lone_model_is_not_the_best_and_gets_no_legend():
    text = printed([two_runs()[1]])
    assert "†" not in text
    assert "*" not in text
    assert "**" not in result_tables.results_table([two_runs()[1]]).markdown()


def test_a_terminal_gets_bold_and_a_narrow_one_gets_domains_below_each_other():
    wide, narrow = printed(two_runs(), 100, terminal=True), printed(two_runs(), 50, terminal=True)
    assert "\x1b[1m1.0000\x1b[0m" in wide
    assert "*" not in wide
    assert wide.count("LLMEDT") == 1
    assert narrow.count("LLMEDT") == 3
    plain = Console(file=io.StringIO(), width=50).render_str(narrow).plain
    assert "0.5000" in plain and "…" not in plain


def test_markup_in_names_is_printed_as_it_is():
    table = ranks([0, 1], domains=("[red]x[/red]", "y"))
    assert "[red]x[/red]" in printed([ModelResult("[bold]m", table)])
    assert "[bold]m" in printed([ModelResult("[bold]m", table)])


def test_a_pipe_that_cannot_show_a_dagger_gets_a_plus(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_table(two_runs(), "toy", file=stream)
    stream.flush()
    assert b"SASRec+" in stream.buffer.getvalue()


def test_metrics_files_hold_every_model_and_domain(tmp_path: Path):
    runs = [*two_runs(), ModelResult("empty", ranks([3, 3, 3, 3]).assign(domain="film"))]
    write_metrics(runs, tmp_path, (1, 10))
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table.columns.tolist()[:4] == ["model", "domain", "users", "hit@1"]
    assert len(table) == 9
    assert table.query("model == 'LLMEDT' and domain == 'overall'")["hit@10"].item() == 0.75
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["SASRec"]["metrics"]["film"] == {
        "users": 2, "hit@1": 0.5, "hit@10": 0.5, "ndcg@1": 0.5, "ndcg@10": 0.5, "mrr@1": 0.5, "mrr@10": 0.5
    }  # fmt: skip
    assert stored["SASRec"]["status"] == "epoch cap"
    assert stored["SASRec"]["ranked"]["split_hash"] == "s"
    assert stored["empty"]["metrics"]["book"]["hit@1"] is None
    assert stored["LLMEDT"]["seconds"] is None


def test_two_runs_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="one name"):
        write_metrics([two_runs()[0]] * 2, tmp_path)


def test_comparing_by_hand():
    result = compare(ranks([0, 0, 20, 1]), ranks([0, 1, 20, 3]), "mrr@10")
    assert result["users"] == 4
    assert result["mean_a"] == pytest.approx(2.5 / 4)
    assert result["mean_b"] == pytest.approx(1.75 / 4)
    assert result["difference"] == pytest.approx(0.75 / 4)  # 0, 1/2, 0, 1/4
    assert result["low"] == 0
    # Each resample averages four draws of {0, 1/2, 0, 1/4}; the 97.5 % point of that distribution.
    sums = np.array([0, 0.5, 0, 0.25])
    every = np.sort((sums[:, None, None, None] + sums[:, None, None] + sums[:, None] + sums).ravel() / 4)
    assert result["high"] == pytest.approx(every[int(0.975 * 256)])
    assert result["p"] == pytest.approx(0.5)  # two differences of one sign: 2 / 2**2


def test_users_are_paired_by_name_not_by_row():
    a, b = ranks([0, 3, 9, 20]), ranks([0, 3, 9, 20])
    shuffled = b.iloc[[2, 0, 3, 1]]
    result = compare(a, shuffled)
    assert (result["difference"], result["low"], result["high"], result["p"]) == (0, 0, 0, 1)


def test_equal_differences_tie_whatever_their_rounding():
    # 1/4 - 0 for most users, 1/4 - 1/2 and 1/2 - 3/4 for the others: all of one size.
    a, b = ranks([3] * 15 + [3] * 10 + [1] * 5), ranks([99] * 15 + [1] * 10 + [0] * 5)
    b.loc[b.index[-5:], "tied"] = 1  # position 1 or 2, 3/4 on average
    expected = stats.wilcoxon(np.array([0.25] * 15 + [-0.25] * 15)).pvalue
    assert compare(a, b, "mrr@10")["p"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ranks([0, 1], split_hash="t"), "split_hash"),
        (ranks([0, 1], candidates_hash="d"), "candidates_hash"),
        (ranks([0, 1], users=["u0", "u9"]), "users .2 are in one"),
        (ranks([0, 1, 2]), "users .1 are in one"),
        (ranks([0, 1]).assign(item="other"), "targets of 2 users"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(other, message):
    with pytest.raises(DataError, match=message):
        compare(ranks([0, 1]), other)
    with pytest.raises(DataError, match=message):
        comparison_table([ModelResult("a", ranks([0, 1])), ModelResult("b", other)])


def test_a_table_that_does_not_say_its_split_is_refused():
    unknown = ranks([0, 1])
    del unknown.attrs["split_hash"]
    with pytest.raises(DataError, match="does not say its split_hash"):
        compare(unknown, unknown)


@pytest.mark.parametrize("metric", ["ndcg", "recall@10", "ndcg@0", "ndcg@x", "NDCG@10"])
def test_an_unknown_metric_is_named(metric):
    with pytest.raises(ConfigError, match=f"unknown metric '{metric}'"):
        compare(ranks([0]), ranks([0]), metric)


def test_the_bootstrap_is_that_of_drawing_users_with_replacement(monkeypatch):
    generator = np.random.default_rng(5)
    values = np.round(generator.normal(0.1, 1, 40), 1)
    means = values[generator.integers(0, 40, (20_000, 40))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, seed=1) == pytest.approx(expected, abs=0.03)
    monkeypatch.setattr(significance, "_BLOCK_ELEMENTS", 3000)
    assert bootstrap_interval(values, seed=1) == pytest.approx(expected, abs=0.03)


def test_the_seed_fixes_the_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, 1) == bootstrap_interval(values, 1)
    assert bootstrap_interval(values, 1) != bootstrap_interval(values, 2)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1, 1]
    assert holm([]).tolist() == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lowers_no_p_and_keeps_their_order(values):
    corrected = holm(values)
    assert (corrected >= np.array(values)).all() and (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(values, kind="stable")]) >= 0).all()


def test_paired_tests_cover_every_other_model_and_domain():
    runs = [*two_runs(), ModelResult("third", ranks([0, 1, 0, 50]))]
    tests = paired_tests(runs, "LLMEDT", "hit@10")
    assert tests["model"].tolist() == ["SASRec"] * 3 + ["third"] * 3
    assert tests["domain"].tolist() == ["overall", "film", "book"] * 2
    assert tests["users"].tolist() == [4, 2, 2] * 2
    assert tests["difference"].tolist() == [0.25, 0.5, 0, 0, 0, 0]
    with pytest.raises(ConfigError, match="no model is called 'LLM'; there are SASRec"):
        paired_tests(runs, "LLM")


def test_paired_tests_are_corrected_as_one_family_and_skip_empty_domains():
    better, worse = (ranks([rank] * 12).assign(domain="film") for rank in (0, 1))
    runs = [ModelResult("a", better), ModelResult("b", worse), ModelResult("c", better)]
    tests = paired_tests(runs, "a")
    assert tests["domain"].tolist() == ["overall", "film"] * 2
    assert tests["p"].iloc[0] < 0.01
    assert tests["p_holm"].tolist() == pytest.approx([4 * tests["p"].iloc[0]] * 2 + [1, 1])


def test_groups_have_a_column_per_model():
    labels = {"popularity": pd.Categorical(["head", "tail", "head", "tail"], ["head", "tail"])}
    runs = [ModelResult("a", ranks([0, 0, 0, 9], **labels)), ModelResult("b", ranks([0, 1, 0, 90], **labels))]
    table = group_table(runs, "hit@1")
    assert table.columns.tolist() == ["group", "label", "users", "a", "b"]
    assert table.to_numpy().tolist() == [["popularity", "head", 2, 1, 1], ["popularity", "tail", 2, 0.5, 0]]
    assert len(group_table(two_runs())) == 0


def test_tables_of_groups_tests_and_models_show_their_values():
    labels = {"popularity": pd.Categorical(["head", "tail", "head", "tail"], ["head", "tail"])}
    runs = [
        ModelResult(
            "SASRec", ranks([0, 0, 50, 50], **labels), epochs(("train", [1.0])), results.EPOCH_CAP, 1, 61, 9876
        ),
        ModelResult("LLMEDT", ranks([0, 1, 0, 50], **labels), note="note"),
    ]
    (groups,) = result_tables.groups_tables(runs)
    assert "| popularity of the target | head | 2 | 0.5000 | **1.0000** |" in groups.markdown().splitlines()
    assert result_tables.groups_tables(two_runs()) == []
    tests = result_tables.significance_table(paired_tests(runs, "LLMEDT"), "LLMEDT", "ndcg@10", {})
    assert any(line.startswith("| SASRec | overall | 4 | +0.1577 |") for line in tests.markdown().splitlines())
    assert result_tables.models_table(runs).markdown().splitlines()[2:] == [
        "| SASRec | 9,876 | 1 | 1 | epoch cap | 61.0 |  |",
        "| LLMEDT | 0 | n/a | n/a | early stopping | n/a | note |",
    ]


def test_tests_of_runs_that_were_not_trained_alike_carry_a_note():
    stopped, capped, short, counted = (
        ModelResult("x", ranks([0]), status=status, max_epochs=n)
        for status, n in (("early stopping", 9), ("epoch cap", 9), ("early stopping", 5), ("no training", 1))
    )
    assert result_tables.unlike_training({"a": [stopped], "b": [stopped], "Pop": [counted]}) == ""
    assert result_tables.unlike_training({"a": [capped, capped], "b": [capped, capped]}) == ""
    one_seed = result_tables.unlike_training({"a": [stopped, stopped], "c": [capped, stopped]})
    assert "(c ended by the epoch cap, others by early stopping)" in one_seed
    assert "(epochs allowed: a 9, d 5)" in result_tables.unlike_training({"a": [stopped], "d": [short]})
    runs = {run.name: [run] for run in two_runs()}
    note = result_tables.significance_table(paired_tests(two_runs(), "LLMEDT"), "LLMEDT", "ndcg@10", runs).note
    assert "NOTE: the runs were not trained alike (SASRec ended by the epoch cap, others by early stopping)" in note


def test_curves_are_drawn_with_phases_names_and_tested_epochs(tmp_path: Path):
    runs = two_runs()
    plot_curves([*runs, ModelResult("no epochs", ranks([0]))], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_is_broken_where_a_phase_starts():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _draw_run(axes, two_runs()[1], "train_loss", {"color": "#000000", "linestyle": "-"})
    curves = [line.get_xydata().tolist() for line in axes.lines]
    assert curves[:2] == [[[1, 0.7], [2, 0.6]], [[3, 0.5]]]
    assert axes.lines[2].get_xdata() == [2.5, 2.5]


def test_epochs_that_were_not_validated_do_not_break_the_line():
    from matplotlib.figure import Figure

    axes, run = Figure().subplots(), two_runs()[0]
    table = epochs(("train", [4.0, 3.0, 2.0, 1.0])).assign(**{"ndcg@10": [np.nan, 0.2, np.nan, 0.4]})
    run = ModelResult("SASRec", run.ranks, table, best_epoch=4)
    _draw_run(axes, run, "ndcg@10", {"color": "#000000", "linestyle": "-"})
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[2, 0.2], [4, 0.4]], [[4, 0.4]]]


@pytest.mark.parametrize(("losses", "scale"), [([7.0, 1.0], "log"), ([1.0, 0.9], "linear"), ([7.0, -1.0], "linear")])
def test_the_loss_axis_is_logarithmic_only_where_it_helps_and_can(tmp_path: Path, monkeypatch, losses, scale):
    from matplotlib.figure import Figure

    scales = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: scales.append(self.axes[1].get_yscale()))
    with pytest.raises(DataError):  # nothing was written under the temporary name
        plot_curves([ModelResult("a", ranks([0]), epochs(("train", losses)))], tmp_path / "c.png")
    assert scales == [scale]


def test_the_highest_are_chosen_by_all_users_and_seeds_and_one_is_kept():
    runs = {str(rank): [ModelResult("x", ranks([rank] * 4)), ModelResult("x", ranks([9] * 4))] for rank in (3, 0, 8, 1)}
    assert result_tables.highest(runs, None, most=2) == ["0", "1"]
    assert result_tables.highest(runs, "8", most=2) == ["0", "8"]
    assert result_tables.highest(runs, "8") == ["3", "0", "8", "1"]


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.filterwarnings("error")
def test_curves_of_up_to_ten_runs_have_whole_legends_and_nothing_on_top_of_each_other(tmp_path, monkeypatch, n):
    long = "LLMEDT (item_representation=text, use_generated=False, a_long_key={})"
    phases = epochs(("pretrain", [0.7] * 9), ("finetune", [0.5] * (n + 3)))
    runs = [ModelResult(long.format(number), ranks([0]), phases, results.EPOCH_CAP) for number in range(n)]
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    plot_curves(runs, tmp_path / "curves.png")
    (figure,) = kept
    figure.draw_without_rendering()
    upper, lower = (axes.get_tightbbox() for axes in figure.axes)
    (shown,) = figure.legends
    legend, whole = shown.get_window_extent(), figure.bbox
    assert figure.get_size_inches()[0] * 150 <= 1600 and len(shown.texts) == n
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and whole.y0 <= legend.y0 and legend.y1 < lower.y0
    assert lower.y1 < upper.y0 and min(axes.bbox.height for axes in figure.axes) > 0.25 * 7 * figure.dpi
    assert whole.x0 <= min(upper.x0, lower.x0) and max(upper.x1, lower.x1) <= whole.x1 and upper.y1 <= whole.y1
    texts = [one.get_window_extent() for one in (*figure.axes[0].texts, figure.axes[0]._left_title)]
    assert len(texts) == (n + 1 if n <= 4 else 1)
    assert not any(one.overlaps(other) for place, one in enumerate(texts) for other in texts[:place])


def test_curves_are_of_the_metric_that_chose_the_epochs(tmp_path, monkeypatch):
    phases = epochs(("train", [0.7, 0.5])).rename(columns={"ndcg@10": "mrr@5"})
    runs = [ModelResult("a", ranks([0]), phases, valid_metric="mrr@5"), ModelResult("Pop", ranks([0]))]
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    plot_curves(runs, tmp_path / "curves.png")
    (figure,) = kept
    assert figure.axes[0].get_ylabel() == "validation mrr@5" and len(figure.axes[0].lines) == 1 == len(figure.legends)
    assert curves_metric(runs) == "mrr@5"
    assert curves_metric([*runs, ModelResult("b", ranks([0]), epochs(("train", [0.7])))]) == "ndcg@10"


def test_a_name_with_a_dollar_sign_or_underscore_is_drawn(tmp_path: Path):
    runs = [ModelResult(name, ranks([0]), epochs(("a$", [1.0, 2.0]), ("$b", [1.0]))) for name in ("$x^{", "_y")]
    plot_curves(runs, tmp_path / "curves.png")


def test_a_report_needs_neither_torch_nor_recbole():
    code = (
        "import sys\n"
        "import recbole_edt.report.result_tables\n"
        "print([m for m in ('torch', 'recbole', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_metric_values_come_from_the_ranks():
    table = ranks([0, 4, 50, 2])
    expected = per_user(table["higher"], table["tied"], "ndcg", 10).mean()
    assert comparison_table([ModelResult("a", table)]).loc["a", ("overall", "ndcg@10")] == pytest.approx(expected)


def test_curves_without_markers_look_different():
    looks = {(look["color"], look["linestyle"]) for look in map(figures.line, range(32))}
    assert len(looks) == 32
