"""``search``, ``train``, ``evaluate`` and ``report``: what works on a run directory."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .common import (
    Engine,
    Interrupted,
    JsonFile,
    Threads,
    check_json_file,
    say,
    set_threads,
    show_table,
    write_result,
)

Data = Annotated[str, typer.Option("--data", metavar="DIR", help="Prepared data (see ameir-fast prepare).")]
Run = Annotated[str, typer.Option("--run", metavar="DIR", help="Run directory.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, metavar="S", help="First seed. Default: 0.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run of that directory; it ends as if never stopped.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what the run directory holds.")]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Settings as JSON; those left out keep their default."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
]


def _print_settings(wanted: bool) -> None:
    if wanted:
        print(settings_text())
        raise typer.Exit()


ListSettings = Annotated[
    bool,
    typer.Option("--settings", is_eager=True, callback=_print_settings, help="List the settings and stop."),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also log to DIR/tensorboard.")]


def search(
    data: Data,
    run: Run,
    seed: Seed = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, metavar="R", help="Seeds S to S+R-1; gives mean and deviation.")
    ] = 1,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look, of clicks in a minute or two; not for quoting.")
    ] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="random, evolution, beam, or module:Class, your own code, which is imported and run as it is.",
        ),
    ] = "random",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="B",
            help="What each repeat's search may take, without the table's other models: 30m, or 40x one model's training. "
            "Split between steps and races; overrides their settings.",
        ),
    ] = None,
    paths_per_step: Annotated[
        int | None,
        typer.Option(
            "--paths-per-step",
            min=1,
            metavar="N",
            help="Behaviour paths a training step, each on the whole batch, over one lookup; gradients are their mean "
            "(sets path_rows=all). Default: 8, each on its own part of the batch.",
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            "--variants", metavar="V,…", help="Rows of the table, or all. Default: found and fixed ones."
        ),
    ] = None,
    threads: Threads = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = False,
    list_settings: ListSettings = False,
    json_file: JsonFile = None,
) -> None:
    """Search a complete model: behaviour blocks, interactions, MLP; then score it on the test split.

    Three steps share one supernet. In each, children are ranked with the shared weights; finalists spread
    over the ranking race by short trainings of their own, and the last ones are trained in full, from
    scratch. Validation decides. The table at the end compares the found models (AMEIR-A after step 1, B
    after step 2, C after all) with hand-made ones, trained by the same rules and as often. The run
    directory gets metrics.json, architecture.json, the model, and report.html, a page to look at.

    \b
    ameir-fast search --data data/movielens-100k --run runs/first
    ameir-fast search --data data/movielens-100k --run runs/look --quick
    ameir-fast search --data data/movielens-100k --run runs/five --repeats 5 --variants all
    ameir-fast search --data D --run R --set embedding_dim=8 --set behavior_children=500
    ameir-fast search --data D --run R --strategy my_strategies:Annealing
    ameir-fast search --data data/movielens-100k --run runs/long --budget 10m

    A run that was stopped, by Ctrl-C or by a kill, goes on with the same command and --resume. --settings
    lists what --set and --config can change.
    """
    check_json_file(json_file)
    check_resume(resume, overwrite)
    from ..report import build_report
    from ..search import search as run_search
    from ..search.budget import Budget
    from ..search.fixed import all_variants

    if paths_per_step is not None:
        settings = ["path_rows=all", *(settings or []), f"paths_per_step={paths_per_step}"]
    make_config(config, settings, seed=seed, quick=quick)  # refuses wrong ones before the data is read
    if budget is not None:
        Budget.parse(budget)
    chosen = choose_strategy(strategy)
    wanted = choose_variants(variants)
    set_threads(threads)
    check_device(device)
    dataset = open_data(data)
    settings_of_run = make_config(config, settings, seed=seed, quick=quick, task=dataset.task)
    if wanted == ("all",):
        wanted = all_variants(dataset.schema)
    with _progress(run, tensorboard) as progress, resumable():
        metrics = run_search(
            dataset,
            run,
            settings_of_run,
            repeats=repeats,
            resume=resume,
            overwrite=overwrite,
            strategy=chosen,
            progress=progress,
            device=device,
            variants=wanted,
            budget=budget,
        )
    page = build_report(run)
    show_results(json_file, metrics)
    say(json_file, f"report: {page}")
    write_result(json_file, metrics)


def train(
    architecture: Annotated[
        str,
        typer.Option(
            "--architecture", metavar="FILE", help="Architecture as JSON, for example of another run."
        ),
    ],
    data: Data,
    run: Run,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = False,
    json_file: JsonFile = None,
) -> None:
    """Train one given architecture from scratch and score it on the test split.

    \b
    ameir-fast train --architecture runs/first/architecture.json --data data/movielens-100k --run runs/again
    --seed 7
    """
    check_json_file(json_file)
    check_resume(resume, overwrite)
    from ..report import build_report
    from ..search import train as run_train
    from ..space import Architecture

    make_config(config, settings, seed=seed)  # refuses wrong ones before the data is read
    arch = Architecture.load(architecture)
    set_threads(threads)
    check_device(device)
    dataset = open_data(data)
    settings_of_run = make_config(config, settings, seed=seed, task=dataset.task)
    with _progress(run, tensorboard) as progress, resumable():
        metrics = run_train(
            dataset,
            run,
            arch,
            settings_of_run,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            device=device,
        )
    page = build_report(run)
    show_results(json_file, metrics)
    say(json_file, f"report: {page}")
    write_result(json_file, metrics)


def evaluate(
    run: Run,
    data: Data,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="train, valid or test.")] = "test",
    engine: Engine = "model",
    threads: Threads = None,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Score the model of a run on a split of prepared data.

    \b
    ameir-fast evaluate --run runs/first --data data/movielens-100k
    ameir-fast evaluate --run runs/first --data data/movielens-100k --engine plan-bfloat16
    ameir-fast evaluate --run runs/first --data data/movielens-100k --split valid --json valid.json
    """
    check_json_file(json_file)
    from ..progress import show_value
    from ..search import evaluate as run_evaluate

    set_threads(threads)
    check_device(device)
    dataset = open_data(data)
    found = run_evaluate(run, dataset, split=split, device=device, engine=engine)
    rows = [[key, show_value(value)] for key, value in found.items() if isinstance(value, (int, float))]
    show_table(json_file, f"{run} on the {split} split of {data}", ["", "value"], rows)
    if "ranked" in found:
        say(json_file, f"each row's item was ranked among {found['ranked']}")
    write_result(json_file, found)


def report(
    run: Run,
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Write report.html of a run, finished or not: one page that needs nothing else.

    \b
    ameir-fast report --run runs/first --open
    """
    check_json_file(json_file)
    from ..report import build_report

    page = build_report(run)
    say(json_file, f"report: {page}")
    write_result(json_file, {"version": 1, "report": str(page)})
    if open_page:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            say(json_file, "no browser could be started; open the file yourself")


def open_data(directory: str) -> Any:
    """The prepared data of a directory, its checksums verified."""
    from ..data import Dataset

    return Dataset.open(directory)


# ---- settings -------------------------------------------------------------------------------------


def make_config(
    file: str | None,
    settings: list[str] | None,
    seed: int | None = None,
    quick: bool = False,
    task: str = "ctr",
) -> Any:
    """The SearchConfig of the options: the task's defaults, then ``--quick``, the file, ``--set``, and ``--seed`` last.

    Raises:
        InputError: a missing or broken file, an unknown setting, or a value out of range.
    """
    from ..schema import read_json
    from ..search import QUICK, SearchConfig

    changes: dict[str, Any] = dict(QUICK) if quick else {}
    if file is not None:
        read = read_json(file)
        if not isinstance(read, dict):
            raise InputError(f"{file}: not a JSON object of settings")
        # config.json of a run directory holds the settings among other things; both forms are taken.
        read = read.get("config", read)
        if not isinstance(read, dict):
            raise InputError(f"{file}: config is not a JSON object of settings")
        try:
            SearchConfig.from_dict(read)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        changes.update({key: value for key, value in read.items() if key != "version"})
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--set {text}: not of the form KEY=VALUE")
        changes[key] = setting_value(value)
    if seed is not None:
        changes["seed"] = seed
    return SearchConfig.for_task(task).changed(**changes)


def settings_text() -> str:
    """The settings with their defaults and what they mean, as SearchConfig's own source says it, and the defaults of
    retrieval where they differ."""
    import inspect

    from ..search import RETRIEVAL, SearchConfig

    body = inspect.getsource(SearchConfig).split('"""', 2)[2].split("    def ", 1)[0]
    others = ", ".join(f"{name} {value}" for name, value in RETRIEVAL.items())
    return f"{textwrap.dedent(body).strip()}\n\nDefaults for retrieval: {others}"


def setting_value(text: str) -> Any:
    """A JSON value (``0.1``, ``true``, ``[1, 2]``), or the text itself where it is none (``uniform``)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def choose_strategy(name: str) -> Any:
    """An instance of a built-in strategy, or of the class that ``module:Class`` names.

    The module is imported like any other and its code runs with the caller's rights: name only code of your
    own. The working directory is on the path.

    Raises:
        InputError: no such strategy, module or class, or a class without ``propose``.
    """
    from ..search.strategy import STRATEGIES

    if name in STRATEGIES:
        return STRATEGIES[name]()
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or module_name.startswith(".") or not class_name:
        raise InputError(
            f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}, or module:Class of your own"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module fails to import is not the same as a wrong name; both end here
        # by name.
        raise InputError(f"--strategy {name}: no module named {error.name!r}") from None
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise InputError(f"--strategy {name}: module {module_name!r} has no class {class_name!r}")
    if not callable(getattr(found, "propose", None)):
        raise InputError(
            f"--strategy {name}: class {class_name!r} has no method propose (see search.Strategy)"
        )
    try:
        return found()
    except TypeError as error:
        raise InputError(f"--strategy {name}: {class_name!r} cannot be made without arguments ({error})") from None


def choose_variants(text: str | None) -> tuple[str, ...] | None:
    """Names for the driver; None keeps its default. ``all``, every row that the data allows, stays as it is."""
    if text is None:
        return None
    from .tools import listed

    return tuple(dict.fromkeys(listed(text)))


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise InputError where both are asked for."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other")


def check_device(device: str) -> None:
    """Raise InputError for a device that is not there."""
    from ..profile import check_device as check

    check(device)


# ---- while it runs --------------------------------------------------------------------------------


def _progress(run: str, tensorboard: bool) -> Any:
    from ..progress import make_progress

    progress = make_progress()
    if tensorboard:
        from ..tensorboard import TensorBoardProgress

        return TensorBoardProgress(progress, run)
    return progress


@contextmanager
def resumable() -> Iterator[None]:
    """Turns Ctrl-C into a line that says how to go on (and exit code 130)."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; continue with: {resume_command(sys.argv[1:])}", file=sys.stderr)
        raise Interrupted from None


def resume_command(arguments: list[str]) -> str:
    """The command that continues what ``arguments`` began."""
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    return shlex.join(["ameir-fast", *kept, "--resume"])


# ---- the table ------------------------------------------------------------------------------------


def show_results(json_file: str | None, metrics: dict, write: Callable[..., None] = show_table) -> None:
    """The final table, the test's standard error, and the seconds of the run."""
    from ..progress import show_seconds
    from ..report import summary

    names = summary.metric_names(metrics)
    order = summary.ordered_variants(metrics)
    strong = [name in summary.FOUND for name in order]
    versus = any(column.startswith("vs ") for column in summary.table_header(metrics))
    write(
        json_file,
        "results on the test split",
        summary.table_header(metrics),
        summary.table_rows(metrics),
        strong,
    )
    ranked = (metrics.get("data") or {}).get("ranked")
    if ranked:
        say(json_file, f"each row's item was ranked among {ranked}")
    for title, header, rows in summary.sampled_tables(metrics):
        write(json_file, title, header, rows, strong)
    for name in names:
        error = summary.standard_error(metrics, name)
        if error is not None:
            said = summary.heading(name)
            say(
                json_file,
                f"the test set alone leaves a standard error of {error:.4f} on the {said} of one model"
                + ("; columns vs are paired differences ± their standard error (runs won)" if versus else ""),
            )
    if metrics.get("seconds"):
        say(json_file, f"time: {show_seconds(metrics['seconds'])}")
