"""The command line: arguments to settings, and errors to one readable message."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from recbole_edt.errors import ConfigError, EDTError

DEFAULT_DATASET = "ml-100k-cross"

STAGES = {
    "prepare": """Make two-domain atomic files, or check your own.

        Reads   the source named by prepare.source (ml-100k, which ships inside RecBole), raw files (amazon2014,
                amazon2018, amazon2023, douban, table), or atomic_files/NAME/NAME.inter and NAME.item
        Writes  atomic_files/NAME/NAME.inter, NAME.item, prepare.json, and the data card card.md, card.json, card.png
                (your own atomic files are only checked)
        Keys    prepare.source, prepare.folder, prepare.files, prepare.columns, prepare.item_columns,
                prepare.time_unit, prepare.after, prepare.before, prepare.repeats, prepare.k_core,
                prepare.min_history, prepare.sample_users, prepare.seed, prepare.max_bad_share, domains, k_core""",
    "embed": """Turn item texts into vectors, one per distinct text.

        Reads   atomic_files/NAME/NAME.item
        Writes  atomic_files/NAME/NAME.itemvec.safetensors, embed.json
        Keys    embed.embedder (wordllama | endpoint), embed.model, embed.dimensions, embed.base_url,
                embed.api_key_env, embed.vectors, embed.missing_text (zero | drop)""",
    "augment": """Write items of the other domain into each user's training history (paper section 3.2).

        Reads   the files of prepare and embed; training interactions only
        Writes  atomic_files/NAME-edt/NAME-edt.inter, .item, .itemvec.safetensors, augment_trace.jsonl, augment.json
        Keys    augment.generator (offline | llm), augment.generated_items, augment.n_clusters,
                augment.n_generated, augment.k, augment.tau, augment.directions, augment.insertion, augment.filter,
                augment.injection_ratio, augment.seed, and those of the group llm""",
    "profile": """Write a profile text and its vector for each user (paper section 3.4).

        Reads   the files of augment; training interactions only
        Writes  atomic_files/NAME-edt/NAME-edt.user, .uservec.safetensors, profile_trace.jsonl, profile.json
                (for LLM4CDSR NAME-edt.hierarchical.user, and so on)
        Keys    profile.generator (offline | llm), profile.n_clusters, profile.pipeline, profile.n_words,
                profile.seed, and those of the group llm""",
    "train": """Train one model and rank its test targets; continues a run that was stopped.

        Reads   the files of augment and profile
        Writes  runs/NAME-HASH/MODEL-HASH/: config.yaml, log.txt, epochs.csv, best.pth, ranks.csv, result.json
        Keys    model, candidates, training (sequence | prefix), and every key of RecBole and of the model""",
    "compare": """Train every model in `models`, or read it if it is done, and write one report.

        Reads   the files of augment and profile, finished runs
        Writes  runs/NAME-HASH/: report.md, curves.png, metrics.json, metrics.csv, and one folder per model
        Keys    models, model_settings, candidates, training, and every key of RecBole""",
    "ablate": """Which part earns what: variants of one model over several seeds, means, deviations and paired tests.

        Reads   the source of prepare or your files, finished runs
        Writes  runs/NAME-ablation-HASH/: ablation.md, ablation.csv, tables means and tests (.json, .md, .csv, .tex),
                also among 100 negatives; a run per variant and seed; and for variants with rows or profiles of
                their own atomic_files/NAME-edt-HASH/
        Keys    model, variants (default: table 3 for LLMEDT, the parts of LLM4CDSR; for any other model without and
                with inserted rows), seeds, and those of all stages before""",
    "audit": """NOT COMPARABLE: one trained LLM-EDT under the released code's protocol, leak by leak, and honestly.

        Reads   the run of LLMEDT with the same settings (train it first; give the same options again)
        Writes  runs/NAME-HASH/LLMEDT-HASH/: audit.md, audit.csv
        Keys    those of train; candidates are all real items of the domain, and 100 negatives where it says so""",
    "experiment": """The paper's tables and figures over several seeds, with its own numbers beside ours.

        Reads   the source of prepare or your files, finished runs
        Writes  runs/NAME-experiments/WHICH/: table.json, .md, .csv, .tex, tests.*, figure.png, .pdf, .csv, runs.csv
        Keys    seeds, models (rows of table2), variants (table3), experiment.llms (table8), and those of all stages
                before
        Options experiment table1 (data), table2 (all models), table3 (ablation), table4 (tau), table5 (K), table6
                (profiles), table7 (domain ratio), table8 (language models), table9 (backbones), figure1 (domain
                ratio), figure3 (map of items), figure4 (history length), figure5 (alpha), figure6 (size and speed),
                cost, audit, or all""",
    "tune": """Search for hyper-parameters on validation: the same number of trials for every model, resumable.

        Reads   the source of prepare or your files
        Writes  runs/NAME-tuning-HASH/: best.yaml (to be given as --config_files), tuning.md, .csv, .tex, .png, .pdf,
                and per model study.sqlite, trials.csv, values.png and a log per trial
        Keys    models (or model), tune.trials (--trials=N, the budget of each model), tune.space (default | paper |
                a file of your own), tune.seed, and those of all stages before""",
    "recommend": """Top items of each domain for all users, some users, or new histories, from a trained model.

        Reads   the run of `model` with the same settings (train it first; give the same options again), and
                recommend.histories, a CSV with user,item[,timestamp] or JSON Lines with {"user": .., "history": [..]}
        Writes  recommend.output (.csv, .jsonl or .parquet), or in runs/NAME-HASH/MODEL-HASH/ recommendations.csv
                (some users: recommendations-users.csv, histories: recommendations-histories.csv);
                with recommend.train_on_all also MODEL-HASH/all-data/, a model for production
        Keys    model, recommend.k, recommend.seen, recommend.domain, recommend.users, recommend.histories,
                recommend.output, recommend.train_on_all""",
    "report": """One page of finished runs and experiments to read in a browser; also Markdown, CSV, LaTeX, PNG, PDF.

        Reads   finished runs of the same split and candidates: those of the data set's run directory, or --runs
        Writes  runs/NAME-HASH/report/: report.html, report.md, tables/, figures/
        Options --runs=DIR,DIR (runs, or folders with runs; then it goes to runs/report/), --output=DIR
        Keys    model (tested against the others, ten at most: those with the highest ndcg@10), models (the order),
                candidates""",
    "inspect": """What was done to one user's data: history, prompts, answers, proposals and their fate.

        Reads   the files of augment and profile, the stored answers
        Writes  the page to read in a browser, atomic_files/NAME-edt/inspect/USER.html
        Options --user=USER""",
    "cache": """The stored answers: stats, export to a JSON Lines file, or prune what is not wanted any more.

        Reads   atomic_files/llm_cache.sqlite, or llm.cache
        Writes  export: the file given; prune: the cache
        Options cache stats
                cache export --file=FILE
                cache prune, with some of --model=MODEL --template=NAME --older-than=DAYS --rejected""",
    "batch": """All requests that are still to be answered, for the Batch API, at half the price within a day.

        Reads   export: the files of prepare and embed; import: the result file of the Batch API
        Writes  export: the file given, one request a line; import: the cache
        Options batch export --file=FILE, upload it, wait, then batch import --file=RESULTS; repeat both until nothing
                is left (prompts of a profile hold earlier answers), then run the stages: they call nobody""",
    "doctor": """Versions, known troubles, and a check of the data set; for bug reports.

        Reads   atomic_files/NAME/, if there is one
        Writes  nothing""",
}

USAGE = f"""usage: python run_edt.py [STAGE] [--dataset=NAME] [--model=MODEL] [--config_files="a.yaml b.yaml"]
                          [--key=value ...]

       python run_edt.py [STAGE] --dry-run          calls, tokens and cost by stage; nothing is sent
       python run_edt.py [STAGE] --max-cost=5       sends no more calls once 5 US dollars are spent

Without a stage: prepare, embed, augment, profile, then compare (or train, if --model is given).
Without arguments: all of it on {DEFAULT_DATASET}, two domains of films from the ml-100k inside RecBole.

stages (python run_edt.py STAGE --help says what each reads and writes):
{{stages}}

Every key of the configuration can be given as --key=value; one inside a group as --group.key=value, for
example --augment.tau=0.9. Settings come from dataset_configs/NAME.yaml if there is one, then from
--config_files in order, then from the command line.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    0, 1 for an error, 2 for bad arguments, 130 for Ctrl-C, 141 if whoever reads the output, such as ``head``, has left.
    """
    # Threads that wait by spinning make training ten times slower as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products on a GPU are not repeatable
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: texts of data need not fit a terminal
    try:
        status = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written at exit
        status = 141
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """As ``main``, but returns the exit status."""
    try:
        stage, values, wants_help = parse(arguments)
        if wants_help:
            print(help_text(stage))
            return 0
        return _run_stage(stage, values, shlex.join(["python", "run_edt.py", *arguments]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EDTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


STUDIES = (
    *(f"table{n}" for n in range(1, 10)),
    *(f"figure{n}" for n in (1, 3, 4, 5, 6)),
    *("cost", "audit", "all"),
)
ACTIONS = {"cache": ("stats", "export", "prune"), "batch": ("export", "import"), "experiment": STUDIES}
"""What stands after the name of some stages."""
OPTIONS = {
    "inspect": ("user",),
    "report": ("runs", "output"),
    "cache export": ("file",),
    "cache prune": ("model", "template", "older_than", "rejected"),
    "batch export": ("file",),
    "batch import": ("file",),
}
"""Arguments of one stage that are no settings."""
FLAGS = ("dry_run", "rejected")
"""Arguments without a value."""
DRY = ("embed", "augment", "profile")
"""Stages that may ask a model; without a stage, all of them."""
TEXTS = ("recommend.domain", "recommend.users", "recommend.histories", "recommend.output")
"""Keys whose values stay as they are: YAML would read the user 0012 as the number 10."""
SHORT = {"max_cost": "llm.max_cost", "trials": "tune.trials"}
"""Keys that need no group on the command line."""


def parse(arguments: Sequence[str]) -> tuple[str | None, dict[str, str], bool]:
    """Stage (with its action) or None, ``--key=value`` pairs as text, and whether help is wanted.

    Raises: ConfigError for an unknown stage or an argument of another form.
    """
    stage, values, wants_help = None, {}, False
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        if argument in ("-h", "--help"):
            wants_help = True
        elif argument.startswith("--") and _plain_name(argument[2:]) in FLAGS:
            values[_plain_name(argument[2:])] = "true"
        elif argument.startswith("--") and "=" in argument:
            key, _, value = argument[2:].partition("=")
            if _plain_name(key) in FLAGS:
                raise ConfigError(f"--{key} takes no value")
            values[_plain_name(key)] = value
        elif argument.startswith("-"):
            hint = "" if following.startswith("-") else f"; write {argument}={following}"
            raise ConfigError(f"{argument}: expected --key=value{hint}")
        elif stage is None and argument in STAGES:
            stage = argument
        elif stage in ACTIONS and argument in ACTIONS[stage]:
            stage = f"{stage} {argument}"
        elif stage in ACTIONS:
            raise ConfigError(f"unknown action '{argument}' of {stage} (there are {', '.join(ACTIONS[stage])})")
        elif argument in STAGES:
            raise ConfigError(f"two stages, {stage} and {argument}: give one at a time")
        else:
            near = difflib.get_close_matches(argument, STAGES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"stages are {', '.join(STAGES)}"
            raise ConfigError(f"unknown stage '{argument}' ({hint})")
    return stage, values, wants_help


def _plain_name(key: str) -> str:
    """The key as the configuration has it: ``max-cost`` is ``llm.max_cost``."""
    known = {*FLAGS, *SHORT, *(one for several in OPTIONS.values() for one in several)}
    name = key.replace("-", "_")
    return SHORT.get(name, name) if name in known else key


def help_text(stage: str | None) -> str:
    """What ``--help`` prints."""
    if stage is None:
        width = max(map(len, STAGES)) + 2
        lines = [f"  {name:<{width}}{text.splitlines()[0]}" for name, text in STAGES.items()]
        return USAGE.format(stages="\n".join(lines))
    first, _, rest = STAGES[stage.partition(" ")[0]].partition("\n")
    return f"python run_edt.py {stage} [--key=value ...]\n\n{first}\n{textwrap.dedent(rest)}"


def _run_stage(stage: str | None, values: dict[str, str], command: str) -> int:
    try:
        from recbole_edt.config import settings as config
        from recbole_edt.config.recbole_config import check_model
        from recbole_edt.experiments import ablation, audit, compare, studies, tuning
        from recbole_edt.pipeline import batch, doctor, dry_run
        from recbole_edt.report import page, user_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "recbole":
            raise
        from recbole_edt.compat import NO_RECBOLE

        raise ConfigError(NO_RECBOLE) from None

    options = _options(stage, values)
    dataset = values.pop("dataset", DEFAULT_DATASET)
    files = [Path(name) for name in values.pop("config_files", "").split()]
    overrides = {key: _typed(key, value) for key, value in values.items()}
    asks = stage != "doctor" and not (stage or "").startswith("cache")
    settings = replace(config.load_settings(dataset, files, overrides, asks), command=command)
    if stage == "doctor":
        return doctor.run(settings, print)
    last = stage or ("train" if "model" in overrides else "compare")
    for note in config.overruled(settings, overrides, _trained(last, settings)):
        print(note)
    for model in {"train": (settings.model,), "compare": settings.models}.get(last, ()):
        check_model(settings, model)  # now, rather than after the models before it
    if "dry_run" in options:
        dry_run.dry_run(settings, stage, print)
    elif stage == "inspect":
        user_page.inspect(settings, print, **options)
    elif stage is not None and stage.startswith(("batch ", "cache ")):
        getattr(batch, stage.replace(" ", "_"))(settings, print, **options)
    elif stage is not None and stage.startswith("experiment "):
        studies.experiment(settings, print, stage.partition(" ")[2])
    elif stage == "report":
        page.make(settings, print, **options)
    elif stage in ("ablate", "audit", "tune"):
        {"ablate": ablation.ablate, "audit": audit.audit, "tune": tuning.tune}[stage](settings, print)
    elif stage is None:
        compare.run_all(settings, last, print)
    else:
        compare.STAGES[stage](settings, print)
    return 0


def _trained(stage: str, settings: Any) -> Iterable[str]:
    """The models that a stage is about."""
    from recbole_edt.experiments import studies, tuning

    if stage.startswith("experiment"):
        rows = studies.chosen_rows(settings, stage.partition(" ")[2], lambda line: None)
        return dict.fromkeys(row.model for several in rows.values() for row in several)
    if stage in ("train", "recommend", "ablate", "audit"):
        return [settings.model]
    return {"compare": settings.models, "tune": tuning.models_of(settings)}.get(stage, ())


def _options(stage: str | None, values: dict[str, str]) -> dict[str, Any]:
    """Takes the arguments that are no settings out of ``values``.

    Raises: ConfigError if the stage does not know one, needs one, or lacks its action.
    """
    if stage in ACTIONS:
        raise ConfigError(f"{stage}: say what to do: {', '.join(f'{stage} {one}' for one in ACTIONS[stage])}")
    if "dry_run" in values and (stage or "").partition(" ")[0] in ("ablate", "tune", "experiment"):
        raise ConfigError(
            f"{stage} asks for each variant whose rows or profiles differ, and has no dry run of its own: "
            "dry-run the settings of a variant by hand, without a stage"
        )
    if "dry_run" in values and stage not in (None, *DRY):
        raise ConfigError(f"{stage} asks nothing, so --dry-run has no meaning; it goes with {', '.join(DRY)}")
    names = ["dry_run", *OPTIONS.get(stage or "", ())]
    options: dict[str, Any] = {name: values.pop(name) for name in names if name in values}
    needed = [name for name in ("user", "file") if name in names and not options.get(name)]
    if needed:
        raise ConfigError(f"{stage} needs --{needed[0]}={needed[0].upper()}")
    return options


def _typed(key: str, value: str) -> Any:
    from recbole_edt.files import read_yaml

    if key in TEXTS and not value.strip():
        raise ConfigError(f"--{key} is empty; give a value, or leave it out")
    return value if key in TEXTS else read_yaml(value, f"--{key}")
