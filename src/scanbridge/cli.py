"""The command line: one verb a function, each a thin call; heavy parts are imported by the verb that needs them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from scanbridge import __version__
from scanbridge.cli_branches import consistency, features
from scanbridge.cli_options import Cache, CohortOption, Device, On, Run, Samples, Settings, Style, grid_of_metrics
from scanbridge.errors import UserError
from scanbridge.terminal import progress, show_summary

app = typer.Typer(
    name="scanbridge",
    help="Translate one medical scan into another that was never acquired, with an uncertainty for every voxel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Say the version and leave.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def check(
    cohort: Annotated[Path, typer.Argument(help="The cohort's table (CSV).")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page with pictures.")] = None,
) -> None:
    """Read every scan of a cohort once and say what is wrong, subject by subject."""
    from scanbridge.check import check_cohort

    findings = check_cohort(cohort, out, say=print)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(2)


@app.command()
def simulate(
    what: Annotated[str, typer.Argument(help="'brain': MR of simulated people with lesions.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the cohort.")],
    subjects: Annotated[int, typer.Option("--subjects", min=1, help="Number of people.")] = 8,
    size: Annotated[int, typer.Option("--size", min=32, help="Voxels along an axis; 96 is 2 mm.")] = 96,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed gives other people.")] = 0,
) -> None:
    """Write a simulated cohort with its table, to try things on."""
    from scanbridge.simulate import simulate_brain

    if what != "brain":
        raise UserError(f"simulate {what}", "'brain'", "scanbridge simulate brain --out DIR")
    with progress("simulating") as advance:
        table = simulate_brain(out, subjects=subjects, size=size, seed=seed, progress=advance)
    print(f"{subjects} people: {table}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A configuration in TOML; configs/ has presets.")],
    cohort: CohortOption,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run; the same command resumes it.")],
    settings: Settings = None,
    device: Device = "auto",
    cache: Cache = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration and the plan.")] = False,
) -> None:
    """Train a model on a cohort; killed anywhere, the same command goes on."""
    from scanbridge.plan import plan_run
    from scanbridge.train import train_run

    plan = plan_run(config, cohort, settings or ())
    if dry_run:
        print(plan.text)
        print(f"# {plan.summary}")
        return
    print(f"{plan.summary}; run folder {run}", file=sys.stderr)
    with progress("training", unit="images") as advance:
        code = train_run(
            plan,
            run,
            device=device,
            cache=cache,
            say=lambda text: print(text, file=sys.stderr),
            on_progress=lambda p: advance(p.images, p.of, f"{p.stage}  loss {p.loss:.4f}  {p.rate:.1f} images/s"),
        )
    if code:
        print(f"stopped; all is saved in {run}, and the same command goes on", file=sys.stderr)
        raise typer.Exit(code)
    print(f"trained: {run}")


@app.command()
def translate(
    run: Run,
    inputs: Annotated[list[Path], typer.Argument(help="Scans in NIfTI, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    target: Annotated[str | None, typer.Option("--target", help="Which image, for a run with several.")] = None,
    quality: Annotated[
        str | None, typer.Option("--quality", help="draft (one call), normal (the run's own) or paper (as published).")
    ] = None,
    calls: Annotated[int | None, typer.Option("--calls", min=1, help="Network calls a volume.")] = None,
    order: Annotated[int | None, typer.Option("--order", min=1, max=2, help="Order of the walk.")] = None,
    grid: Annotated[str | None, typer.Option("--grid", help="theta, linear, quadratic, lambda, published.")] = None,
    eta: Annotated[float | None, typer.Option("--eta", min=0, max=1, help="Stochasticity of the walk.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Draws to write beside the estimate.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    style: Style = None,
    foreground: Annotated[Path | None, typer.Option("--foreground", help="A mask instead of the computed one.")] = None,
    device: Device = "auto",
    shard: Annotated[str, typer.Option("--shard", help="i/n: the i-th of n parts of the inputs.")] = "1/1",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write anew what was made otherwise.")] = False,
    interval: Annotated[
        bool | None, typer.Option("--interval/--no-interval", help="Demand intervals, or leave them out.")
    ] = None,
) -> None:
    """Translate scans; the results lie on the scans' own grids, finished ones are kept."""
    from scanbridge.options import Options
    from scanbridge.translate import translate_all

    walk = {"quality": quality, "calls": calls, "order": order, "grid": grid, "eta": eta}
    options = Options(target, samples, seed, style=style, foreground=foreground, interval=interval, **walk)  # type: ignore[arg-type]
    with progress("translating") as advance:
        made, kept = translate_all(
            run,
            inputs,
            out,
            options,
            device=device,
            shard=shard,
            overwrite=overwrite,
            on_progress=advance,
            say=lambda text: print(text, file=sys.stderr),
        )
    print(f"{made} translated, {kept} were there already: {out}")


@app.command()
def calibrate(
    run: Run,
    cohort: CohortOption,
    split: Annotated[str, typer.Option("--split", help="calibration, or external for a new cohort.")] = "calibration",
    miss: Annotated[float, typer.Option("--miss", help="Share of a patient's voxels that may lie outside.")] = 0.1,
    patients: Annotated[
        float | None, typer.Option("--patients", help="Share of patients for whom that holds; 0.9 if left out.")
    ] = None,
    signal: Annotated[
        str | None,
        typer.Option("--signal", help="windows, head, spread, or a method's own; the val subjects choose if left out."),
    ] = None,
    control: Annotated[
        str, typer.Option("--control", help="quantile (of patients) or risk (on average).")
    ] = "quantile",
    samples: Annotated[int, typer.Option("--samples", min=0, help="Draws a patient, for the signal 'spread'.")] = 0,
    device: Device = "auto",
) -> None:
    """Turn the uncertainty of a run into a promise, with patients that nothing in it has touched."""
    from scanbridge.calibrate import calibrate_run

    with progress("calibrating") as advance:
        made = calibrate_run(
            run,
            cohort,
            split=split,
            miss=miss,
            patients=patients,
            signal=signal,
            control=control,
            samples=samples,
            device=device,
            on_progress=advance,
            say=lambda text: print(text, file=sys.stderr),
        )
    print(made.made, file=sys.stderr)
    print(made.sentence)


@app.command()
def evaluate(
    run: Run,
    cohort: CohortOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for tables and the page.")],
    split: Annotated[
        str, typer.Option("--split", help="test, val, calibration, or external for a new cohort.")
    ] = "test",
    translations: Annotated[Path | None, typer.Option("--translations", help="Judge these volumes instead.")] = None,
    regression: Annotated[Path | None, typer.Option("--regression", help="A regression run, as a floor.")] = None,
    on: On = "target",
    style: Style = None,
    allow_oracle: Annotated[bool, typer.Option("--allow-oracle", help="Let --style own look at the truth.")] = False,
    samples: Samples = 0,
    device: Device = "auto",
) -> None:
    """Judge a run on people that it has not seen, beside floors that are not clever."""
    from scanbridge.evaluate import evaluate_runs

    with progress("evaluating") as advance:
        page = evaluate_runs(
            [run],
            cohort,
            out,
            split=split,
            on=grid_of_metrics(on),
            regression=regression,
            translations=translations,
            style=style,
            oracle=allow_oracle,
            samples=samples,
            device=device,
            on_progress=advance,
            say=lambda text: print(text, file=sys.stderr),
        )
    show_summary(out)
    print(f"page: {page}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    cohort: CohortOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for tables and the page.")],
    split: Annotated[str, typer.Option("--split", help="test, val, calibration or external.")] = "test",
    on: On = "target",
    samples: Samples = 0,
    device: Device = "auto",
) -> None:
    """Hold runs against each other on the same people, with paired intervals."""
    from scanbridge.evaluate import evaluate_runs

    with progress("comparing") as advance:
        page = evaluate_runs(
            runs,
            cohort,
            out,
            split=split,
            on=grid_of_metrics(on),
            samples=samples,
            device=device,
            on_progress=advance,
            say=lambda text: print(text, file=sys.stderr),
        )
    show_summary(out)
    print(f"page: {page}")


class _Several(TyperCommand):
    """A verb where several values may follow ``--rows`` and ``--seeds``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read ``--seeds 0 1 2`` as ``--seeds 0 --seeds 1 --seeds 2``."""
        words: list[str] = []
        option = ""
        for word in args:
            if word.startswith("--"):
                option = word if word in ("--rows", "--seeds") else ""
            elif option and words[-1] != option:
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


@app.command(cls=_Several)
def ablate(
    config: Annotated[Path, typer.Argument(help="The full method: a configuration in TOML.")],
    cohort: CohortOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, tables and the page; the command resumes it.")],
    rows: Annotated[
        list[str] | None, typer.Option("--rows", help="Rows of the method's table, one after another; else all.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seeds", min=0, help="Seeds of the trainings: --seeds 0 1 2; else the file's own."),
    ] = None,
    settings: Settings = None,
    split: Annotated[str, typer.Option("--split", help="test or val.")] = "test",
    on: On = "target",
    device: Device = "auto",
    cache: Cache = None,
) -> None:
    """Train and judge the rows of a method's ablation table at one budget; killed anywhere, the same call goes on."""
    from scanbridge.ablate import ablate_method

    with progress("ablating") as advance:
        code = ablate_method(
            config,
            cohort,
            out,
            rows=rows or (),
            seeds=seeds or (),
            settings=settings or (),
            split=split,
            on=grid_of_metrics(on),
            device=device,
            cache=cache,
            say=lambda text: print(text, file=sys.stderr),
            on_progress=advance,
        )
    if code:
        print(f"stopped; all is saved in {out}, and the same command goes on", file=sys.stderr)
        raise typer.Exit(code)
    show_summary(out, first_calls=False)
    print(f"page: {out / 'report.html'}")


@app.command()
def downstream(
    cohort: Annotated[Path, typer.Argument(help="The cohort's table (CSV).")],
    run: Annotated[list[Path], typer.Option("--run", help="A run; several are folds of one cross-validation.")],
    task: Annotated[str, typer.Option("--task", help="The column to predict: a covariate of classes, or a mask.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for tables and the page; the same command goes on.")],
    kind: Annotated[str | None, typer.Option("--kind", help="classify or segment; the column says which.")] = None,
    folds: Annotated[int, typer.Option("--folds", help="Folds of the task, by subject.")] = 5,
    dims: Annotated[int, typer.Option("--dims", help="3 for volumes, 2 for slices.")] = 3,
    size: Annotated[int | None, typer.Option("--size", help="Voxels a side; 48 in 3D, 96 in 2D.")] = None,
    images: Annotated[int | None, typer.Option("--images", help="Images that every network is shown.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of folds, weights and order.")] = 0,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Take subjects that the run was trained on too; marked.")
    ] = False,
    device: Device = "auto",
    cache: Cache = None,
) -> None:
    """Say what synthetic images are worth for a task: the same network with none, with them, and with real ones."""
    from scanbridge.downstream.run import downstream_task

    with progress("downstream") as advance:
        page = downstream_task(
            cohort,
            run,
            task,
            out,
            kind=kind,
            folds=folds,
            dims=dims,
            size=size,
            images=images,
            seed=seed,
            include_seen=include_seen,
            device=device,
            cache=cache,
            on_progress=advance,
            say=lambda text: print(text, file=sys.stderr),
        )
    print((out / "downstream.md").read_text(encoding="utf-8").partition("\n## Fold by fold")[0])
    print(f"page: {page}")


for verb in (features, consistency):
    app.command()(verb)


@app.command()
def info(run: Run) -> None:
    """Say in plain words what a run is: what it was trained on, units, spacing, defaults."""
    from scanbridge.info import describe

    print(describe(run))


def _stopped(number: int, frame: object) -> None:  # noqa: ARG001  (the form of a signal handler)
    print("scanbridge: stopped; what was finished is kept", file=sys.stderr)
    sys.exit(128 + number)


def main() -> None:
    """Run the command line: 0 done, 2 something for the user to mend, 130 and 143 stopped, 1 a fault of ours."""
    signal.signal(signal.SIGTERM, _stopped)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us wants it ignored
        signal.signal(signal.SIGINT, _stopped)
    try:
        app()
    except UserError as error:
        print(f"scanbridge: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        print("scanbridge: this is a fault of ours, not of your data; please report the lines below", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
