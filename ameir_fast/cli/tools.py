"""``doctor``, ``profile``, ``export`` and ``bench``."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from ..errors import InputError
from .common import (
    Engine,
    JsonFile,
    Threads,
    check_json_file,
    say,
    set_threads,
    show_table,
    write_result,
    write_rows,
)

Work = Annotated[
    str | None,
    typer.Option("--work", metavar="DIR", help="Where the files lie meanwhile. Default: the system's temporary place."),
]
Quick = Annotated[bool, typer.Option("--quick", help="A first look in under 45 seconds; not for quoting.")]
Repeats = Annotated[int | None, typer.Option("--repeats", min=1, metavar="R", help="Measure R times over.")]


def doctor(json_file: JsonFile = None) -> None:
    """Show what is installed, which backends work here, and why the others do not.

    Paste its output into a bug report. It probes, and changes nothing.
    """
    check_json_file(json_file)
    from ..doctor import diagnose, lines

    report = diagnose()
    group = None
    for heading, name, what in lines(report):
        if heading != group:
            say(json_file, f"{heading}" if group is None else f"\n{heading}")
            group = heading
        say(json_file, f"  {name:<14} {what}")
    write_result(json_file, report)


def profile(
    run: Annotated[
        str | None, typer.Option("--run", metavar="DIR", help="Run directory whose derived model is timed.")
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,…", help="Batch sizes, separated by commas.")
    ] = "1,64,1024",
    threads: Threads = None,
    device: Annotated[
        str, typer.Option("--device", help="cpu or cuda; with --predict a card: a100, h100, h200, b200, l4, l40s.")
    ] = "cpu",
    engine: Engine = "model",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, help="Time spent on each batch size.")
    ] = 2.0,
    parts: Annotated[
        bool, typer.Option("--parts", help="Also where the time of a plan goes, part by part, on one thread.")
    ] = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Measure nothing: what a GPU would need at least, from bytes and operations.")
    ] = False,
    case: Annotated[
        str | None, typer.Option("--case", metavar="SUITE/CASE", help="With --predict: a shape of bench cpu, such as alimama/din.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="With --predict: of matrix products, ieee, tf32 or bf16.")
    ] = "ieee",
    json_file: JsonFile = None,
) -> None:
    """Time the derived model of a run: p50 and p99 of one call, and samples per second, by batch size.

    Ids are random and every history has its full length, so the numbers are the most a batch of that size
    costs. The backend column says what computes.

    \b
    ameir-fast profile --run runs/first
    ameir-fast profile --run runs/first --engine plan
    ameir-fast profile --run runs/first --engine plan --parts --batch 1024
    ameir-fast profile --run runs/first --batch 1,8 --threads 1 --json latency.json
    ameir-fast profile --run runs/first --predict --device h100 --batch 4096
    """
    check_json_file(json_file)
    sizes = whole_numbers("--batch", batch)
    if predict:
        if parts:
            raise InputError("--parts measures, and --predict measures nothing: choose one")
        _predict(run, case, device, sizes, precision, json_file)
        return
    if run is None or case is not None:
        raise InputError("--run names what is timed; --case is for --predict alone")
    from ..profile import profile_run

    set_threads(threads)
    rows = profile_run(run, sizes, device, seconds, engine=engine, parts=parts)
    show_table(
        json_file,
        f"latency of {run}",
        ["engine", "backend", "threads", "batch", "p50 ms", "p99 ms", "samples/s", "calls"],
        [
            [
                r["engine"],
                r["backend"],
                r["threads"],
                f"{r['batch']:,}",
                f"{r['p50_ms']:.3f}",
                f"{r['p99_ms']:.3f}",
                f"{r['samples_per_s']:,.0f}",
                f"{r['calls']:,}",
            ]
            for r in rows
        ],
    )
    for row in rows if parts else ():
        total = sum(part["seconds"] for part in row["parts"])
        show_table(json_file, f"parts of {engine}, batch {row['batch']:,}, one thread", ["part", "ms", "share", "GFLOP/s"],
                   [[part["part"], f"{1e3 * part['seconds']:.3f}", f"{100 * part['seconds'] / total:.1f}%",
                     f"{part['flops'] / part['seconds'] / 1e9:.1f}" if part["flops"] and part["seconds"] else "–"]
                    for part in row["parts"]])
    write_result(json_file, {"version": 1, "run": run, "rows": rows})


def _predict(run: str | None, case: str | None, device: str, sizes: list[int], precision: str,
             json_file: str | None) -> None:
    from .. import cost
    from ..gpu_plan import LARGEST

    if (run is None) == (case is None):
        raise InputError("--predict takes a model from --run or from --case, one of them")
    if precision not in cost.PRECISIONS:
        raise InputError(f"precision {precision!r}: known are {', '.join(cost.PRECISIONS)}")
    if device == "cpu":
        raise InputError(f"--predict needs a card: --device {', '.join(cost.GPUS)}")
    gpu, found = cost.gpu_of(device), []
    if run is not None:
        from ..model import Model

        model = Model.load(Path(run) / "model")
        schema, arch, embedding_dim = model.schema, model.arch, model.embedding_dim
    else:
        schema, arch, embedding_dim = _shape_of(case)
    for size in sizes:
        prediction = cost.predict(schema, arch, embedding_dim, size, gpu, precision)
        found.append(prediction)
        show_table(json_file, f"PREDICTION, nothing was measured: {run or case}, batch {size:,}, full histories, on {gpu.name} "
                   f"({precision} products)", ["part", "MFLOP", "MB", "least µs", "bound by", "launches"],
                   [[p["part"], f"{p['flops'] / 1e6:,.2f}", f"{p['bytes'] / 1e6:,.3f}", f"{1e6 * p['seconds']:,.2f}", p["bound"],
                     _counted(p.get("launches", ()))] for p in (*prediction["parts"], prediction["total"])])
        more = "" if size <= LARGEST else f", for each {LARGEST:,} rows"
        say(json_file, f"  {len(prediction['launches'])} launches in one graph{more} (of a batch on the GPU the first comes before it)\n"
            f"  prediction: at most {prediction['samples_per_s']:,.0f} samples/s at the card's peak rates; launches come on top")
    write_result(json_file, {"version": 1, "prediction": True, "model": run or case, "predictions": found})


def _counted(names: Sequence[str]) -> str:
    """Kernels' names, each once with how often."""
    counts = Counter(name.removesuffix("_kernel") for name in names)
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts.items())


def _shape_of(case: str) -> tuple:
    suite, _, name = case.partition("/")
    chosen = bench_module("suites").cases([suite], [name] if name else None)
    if len(chosen) != 1:
        raise InputError(f"--case {case}: name one of {', '.join(f'{c.suite}/{c.name}' for c in chosen)}")
    return chosen[0].schema, chosen[0].architecture, chosen[0].embedding_dim


def export(
    run: Annotated[str, typer.Option("--run", metavar="DIR", help="Run directory whose derived model is exported.")],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="Gets plan.safetensors and plan.json.")],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="T", help="float32, or bfloat16 for the MLP (faster with AMX or AVX512_BF16, and less exact).")
    ] = "float32",
    fold_bytes: Annotated[
        int | None,
        typer.Option("--fold-bytes", min=0, metavar="N", help="Most memory for tables of folded fields. Default: 2 MiB; 0: none."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that is already there.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Write the plan of a run's derived model: what a service loads to score with it on the CPU.

    In the service: plan = ameir_fast.Plan.load(DIR), then plan(batch), or plan.score(user, candidates). Loading
    executes nothing from the files.

    \b
    ameir-fast export --run runs/first --output plans/first
    """
    check_json_file(json_file)
    from ..model import Model
    from ..profile import compiled

    directory = Path(run) / "model"
    if not (directory / "model.json").is_file():
        raise InputError(f"{run}: no derived model in it (model/model.json is missing); has the run finished?")
    if (Path(output) / "plan.json").exists() and not overwrite:
        raise InputError(f"{output}: there is a plan already; --overwrite replaces it")
    plan = compiled(Model.load(directory), dtype=dtype, fold_bytes=fold_bytes)
    plan.save(output)
    folded = f", {len(plan.folded)} fields folded" if plan.folded else ""
    say(json_file, f"plan: {output} ({plan.dtype}{folded}; on this machine it runs on {plan.instruction_set})")
    write_result(json_file, {"version": 1, "plan": output, "dtype": plan.dtype, "instruction_set": plan.instruction_set,
                             "folded": plan.folded})


bench = typer.Typer(
    help=(
        "Measure speed: cpu and gpu (whole models), train (a supernet's step), population (many children together), kernels (the Triton kernels' machine code), "
        "native (the C++ host code against NumPy), prepare (reading data against pandas), batches (feeding).\n\n"
        "Each row says what was compared with what, and how far the result is from the machine's own limit."
    ),
    rich_markup_mode=None,
    no_args_is_help=False,
    invoke_without_command=True,
)


@bench.callback()
def _bench(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit()


@bench.command("cpu")
def bench_cpu(
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="S,…", help="alimama, criteo, beauty. Default: all.")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--cases", metavar="C,…", help="Cases such as din, conv, pool, gru, attn, mixed. Default: all."
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option("--lengths", metavar="L", help="full, ragged or candidates. Default: all; full with --quick."),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, metavar="N", help="Rows of a batch.")] = None,
    engines: Annotated[
        str | None,
        typer.Option("--engines", metavar="E,…", help="plan, plan-unfolded, plan-bfloat16, eager, compile, onnxruntime. Default: all; plan, eager with --quick."),
    ] = None,
    repeats: Repeats = None,
    threads: Threads = None,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Throughput and latency of whole models on the CPU.

    Outputs are compared with an fp64 reference on the same weights, and a row is refused beyond 1e-4. The
    share of the limit compares with the time that this machine's own GEMM rate and copy bandwidth, measured
    in the same run, would allow. --json writes one object a line.

    \b
    ameir-fast bench cpu --quick
    ameir-fast bench cpu --suite alimama --cases din,gru --lengths ragged --threads 2 --json rows.jsonl
    """
    check_json_file(json_file)
    set_threads(threads)
    suite_module = bench_module("cpu")
    rows = suite_module.run(
        suites=listed(suite),
        names=listed(names),
        kinds=listed(kinds),
        batch=batch,
        engines=listed(engines),
        repeats=repeats,
        quick=quick,
        on_row=lambda row: say(json_file, _bench_line(row)),
    )
    for line in suite_module.summary(rows):
        say(json_file, line)
    write_rows(json_file, rows)


def _bench_line(row: dict) -> str:
    start = (
        f"{row['suite']:<8} {row['case']:<7} {row['engine']:<13} {row['lengths']:<10} batch {row['batch']:>5}"
    )
    if row["refused"]:
        return f"{start}  refused: {row['refused']}"
    return (
        f"{start}  {row['samples_per_s']:>11,.0f} samples/s  p50 {row['p50_ms']:>8.3f} ms"
        f"  p99 {row['p99_ms']:>8.3f} ms"
        f"  {100 * row['share_of_limit']:>5.1f}% of the limit  error {row['max_abs_err']:.1e}"
        + (f"  {row['ratio']:.1f}x the best peer" if row["ratio"] else "")
    )


@bench.command("native")
def bench_native(threads: Threads = None, quick: Quick = False, json_file: JsonFile = None) -> None:
    """The C++ host code (assembling batches, negatives, AUC) against the NumPy and PyTorch ways it replaces.

    \b
    ameir-fast bench native --quick
    ameir-fast bench native --json rows.jsonl
    """
    check_json_file(json_file)
    set_threads(threads)
    suite_module = bench_module("native")
    rows = suite_module.run(quick=quick)
    say(json_file, suite_module.table(rows))
    write_rows(json_file, rows)


@bench.command("prepare")
def bench_prepare(
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="N,…", help="Files prepared without pandas. Default: 30 million rows."),
    ] = None,
    pandas_rows: Annotated[
        int | None, typer.Option("--pandas-rows", min=1, metavar="N", help="The file for both. Default: 10 million.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, metavar="R", help="Of both. Default: 3.")] = None,
    work: Work = None,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Preparing files in Criteo's form: rows per second and peak memory, against pandas; then feeding.

    The rows are made up and written to the disk first, some 700 bytes of it a row; the ids of both engines are compared
    before anything is said. Feeding compares the rate of batches with that of a supernet's training.

    \b
    ameir-fast bench prepare --quick
    ameir-fast bench prepare --rows 10000000,30000000 --pandas-rows 1000000 --json rows.jsonl
    """
    check_json_file(json_file)
    sizes = None if rows is None else whole_numbers("--rows", rows)
    suite_module = bench_module("prepare")
    found = suite_module.run(
        sizes,
        pandas_rows,
        rounds,
        quick,
        work,
        on_row=lambda row: say(json_file, suite_module.line(row)),
    )
    write_rows(json_file, found)


@bench.command("batches")
def bench_batches(
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, metavar="N", help="Of each shape. Default: 20 million.")
    ] = None,
    work: Work = None,
    threads: Threads = None,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Feeding: rows per second of shuffled batches at the benchmark shapes, against the training of a supernet.

    The data is made up and written to the disk first. Batches are also compared with those of one permutation of all
    rows, with NumPy alone and with the stored order.

    \b
    ameir-fast bench batches --quick
    ameir-fast bench batches --rows 10000000 --threads 1 --json rows.jsonl
    """
    check_json_file(json_file)
    set_threads(threads)
    suite_module = bench_module("batches")
    found = suite_module.run(rows, quick, work, on_row=lambda row: say(json_file, suite_module.line(row)))
    write_rows(json_file, found)


@bench.command("gpu")
def bench_gpu(
    suite: Annotated[str | None, typer.Option("--suite", metavar="S,…", help="alimama, criteo, beauty. Default: all.")] = None,
    names: Annotated[str | None, typer.Option("--cases", metavar="C,…", help="As of bench cpu. Default: all.")] = None,
    kinds: Annotated[str | None, typer.Option("--lengths", metavar="L", help="full or ragged. Default: both.")] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="N,…", help="Rows of a batch. Default: 1 to 65,536.")
    ] = None,
    engines: Annotated[
        str | None, typer.Option("--engines", metavar="E,…", help="plan, eager, compile (max-autotune), graph (eager in CUDA graphs), launched (the plan without graphs).")
    ] = None,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Throughput and latency of whole models on a GPU, and of a supernet's training.

    Outputs are compared with an fp64 reference on the same weights, and a row is refused beyond 1e-4. --json writes one
    object a line, each row as soon as it is measured. compile makes kernels anew for each case and batch, which takes most
    of the time: --engines plan,eager,graph goes without.

    \b
    ameir-fast bench gpu --quick
    ameir-fast bench gpu --suite alimama --batch 256,4096 --json rows.jsonl
    """
    check_json_file(json_file)
    suite_module = bench_module("gpu")
    measured: list[dict] = []

    def told(row: dict) -> None:
        measured.append(row)
        say(json_file, suite_module.line(row))
        if json_file != "-":
            write_rows(json_file, measured)  # a run of hours that fails or is stopped keeps what it has

    rows = suite_module.run(listed(suite), listed(names), listed(kinds), whole_numbers("--batch", batch) if batch else None,
                            listed(engines), quick, on_row=told)
    for line in suite_module.summary(rows):
        say(json_file, line)
    write_rows(json_file, rows)


@bench.command("kernels")
def bench_kernels(
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Compile and read the machine code; needs no GPU.")
    ] = False,
    arch: Annotated[
        str, typer.Option("--arch", metavar="A,…", help="sm_80, sm_90, sm_100, gfx942.")
    ] = "sm_80,sm_90,sm_100,gfx942",
    only: Annotated[str | None, typer.Option("--only", metavar="PART", help="Kernels with this in their name.")] = None,
    aligned: Annotated[
        bool | None,
        typer.Option("--aligned/--any-strides", help="Only for strides that are multiples of 16, of which Triton makes other binaries, "
                     "or only for any strides. Default: both (of AMD's only the latter).", show_default=False),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """The Triton kernels: registers, spills, shared memory and occupancy of each, from its machine code.

    Each kernel's default configuration is compiled at its specimens, the shapes of the benches among them.

    \b
    ameir-fast bench kernels --compile-only
    ameir-fast bench kernels --compile-only --arch sm_90 --only attention --json rows.jsonl
    """
    check_json_file(json_file)
    if not compile_only:
        raise InputError("bench kernels: only --compile-only can be asked for; `ameir-fast bench gpu` measures on a GPU")
    suite_module = bench_module("kernels")
    rows = []
    for row in suite_module.run(listed(arch), only, aligned):
        rows.append(row)
        say(json_file, suite_module.line(row))
    for line in suite_module.summary(rows):
        say(json_file, line)
    write_rows(json_file, rows)


@bench.command("train")
def bench_train(
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Of each engine. Default: 64.")
    ] = None,
    children: Annotated[
        int | None,
        typer.Option("--children", min=2, metavar="N", help="Instead: N children in one pass over the data, against one after the other."),
    ] = None,
    threads: Threads = None,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """A supernet's training step: native operations against the reference backend, and as the embedding grows.

    Both train the same uniformly drawn paths on the same batches, in turn. Growth is that of the step's time and of a
    process's peak memory with the rows of the embedding. With --children, models or paths that are trained together are
    compared with the same ones trained one after the other.

    \b
    ameir-fast bench train --quick
    ameir-fast bench train --threads 2 --json rows.jsonl
    ameir-fast bench train --children 16 --threads 2
    """
    check_json_file(json_file)
    set_threads(threads)
    if children is not None:
        if steps is not None:
            raise InputError("--steps is of the supernet's training step; --children has none")
        suite_module = bench_module("train_children")
        write_rows(json_file, suite_module.run(children, quick, on_row=lambda row: say(json_file, suite_module.line(row))))
        return
    suite_module = bench_module("train")
    found = suite_module.run(quick, steps, on_row=lambda row: say(json_file, suite_module.line(row)))
    write_rows(json_file, found)


@bench.command("population")
def bench_population(
    step: Annotated[int, typer.Option("--step", metavar="N", help="Of the search. 1: behaviour paths; 2: interactions; 3: MLPs over given blocks.")],
    children: Annotated[
        int | None, typer.Option("--children", min=1, metavar="N", help="Evaluated together, at random. Default: all; in step 1 2,000.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=2, metavar="N", help="Rows. Default: 16,384, in step 1 4,096; with --quick 4,096 and 2,048.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, max=3, metavar="L", help="Of the MLP (step 3). Default: 2 and 3; 2 with --quick.")
    ] = None,
    threads: Threads = None,
    quick: Quick = False,
    json_file: JsonFile = None,
) -> None:
    """Many children together against one at a time, through plans or native operations and in eager PyTorch.

    Logits are compared, and a row says from how many children's it has its difference. Memory is the peak of a process that
    does nothing else.

    \b
    ameir-fast bench population --step 3 --quick
    ameir-fast bench population --step 3 --layers 3 --threads 2 --json rows.jsonl
    """
    check_json_file(json_file)
    set_threads(threads)
    suite_module = bench_module("population")
    found = suite_module.run(step, children, samples, layers, quick, on_row=lambda row: say(json_file, suite_module.line(row)))
    write_rows(json_file, found)


def bench_module(name: str) -> ModuleType:
    """A module of the benchmark suites.

    Raises:
        InputError: the suites are not there, as in a checkout that was never installed.
    """
    try:
        return importlib.import_module(f"ameir_fast.bench.{name}")
    except ModuleNotFoundError as error:
        if error.name != "ameir_fast.bench":
            raise
    raise InputError("the benchmarks come with an installed package: pip install -e . in the checkout")


def listed(text: str | None) -> list[str] | None:
    """``a,b`` as a list; None stays None.

    Raises:
        InputError: an empty entry.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"empty entry in the list {text!r}")
    return parts


def whole_numbers(option: str, text: str) -> list[int]:
    """``1,64`` as positive integers.

    Raises:
        InputError: an entry that is none, naming the option.
    """
    numbers = []
    for part in listed(text):
        if not part.isdecimal() or int(part) < 1:
            raise InputError(f"{option}: {part!r} is not a positive integer")
        numbers.append(int(part))
    return numbers
