"""`ablate --table NAME`: one of the paper's ablation tables, trained and scored row by row.

The rows are changes of the config (default: the canonical one). Rows that are equal, also of different tables, are
trained once; rows that differ only in inference share their training. The same command again goes on after any stop:
what is done is not done again, and a training that was stopped continues. Each table is written to the working
directory as JSON, Markdown and an image, the paper's figures beside ours; `--collect FILE` puts those that are there
into a document.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import jax

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.errors import UserError
from pfcn_jax.parallel import distributed
from pfcn_jax.studies.ablate import report
from pfcn_jax.studies.ablate.runs import Runs, evaluation_key, training_key
from pfcn_jax.studies.ablate.tables import TABLES, Row, Table, apply
from pfcn_jax.training.workdir import cache_compiled


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--table", nargs="+", choices=(*TABLES, "all"), default=[], help="what to make")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run of each row for each (default: 0)")
    parser.add_argument("--workdir", default="runs/ablate", help="trainings, figures and tables (default: runs/ablate)")
    parser.add_argument("--list", action="store_true", help="only say what the rows are, and what is done of them")
    parser.add_argument("--collect", metavar="FILE", help="write the tables of the working directory into a document")
    distributed.add_flags(parser)


def main(args: argparse.Namespace) -> int:
    workdir = pathlib.Path(args.workdir)
    if args.collect:
        return _collect(pathlib.Path(args.collect), workdir)
    if not args.table:
        raise UserError(f"which table? --table {' '.join(TABLES)}, or all")
    tables = list(TABLES.values()) if "all" in args.table else [TABLES[name] for name in dict.fromkeys(args.table)]
    seeds = list(dict.fromkeys(args.seeds))
    distributed.join(args)
    base = from_command_line(args.config_argv, Config())
    runs = Runs(base, workdir)
    if jax.process_index() == 0:
        print(plan(tables, runs, seeds, rows=args.list), flush=True)
    if args.list:
        return 0
    cache_compiled(workdir)  # over seeds and stops
    failed = run_tables(tables, runs, seeds)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def run_tables(tables: Sequence[Table], runs: Runs, seeds: Sequence[int]) -> list[str]:
    """Measures every row, all tables of one seed before the next; a table is written whenever it has grown.

    Returns:
      One line for each row that failed. The others are made all the same.
    """
    failed = []
    for seed in seeds:
        for table in tables:
            for row in table.rows:
                _say(f"== {table.name}, {row.name}, seed {seed}")
                try:
                    runs.measure(apply(runs.base, row, seed=seed))
                except (UserError, RuntimeError, OSError) as error:  # a row may need more memory than there is
                    if jax.process_count() > 1 and not isinstance(error, UserError):
                        raise
                    jax.clear_caches()
                    failed.append(f"{table.name}, {row.name}, seed {seed}: {error}")
                    _say(failed[-1])
                if jax.process_index() == 0:
                    report.write_table(runs.workdir, record(table, runs, seeds))
    if jax.process_index() == 0:
        for table in tables:
            print(f"\n{report.markdown(record(table, runs, seeds))}\n\n{runs.workdir / table.name}.json, .md, .png")
    return failed


def record(table: Table, runs: Runs, seeds: Sequence[int]) -> report.Record:
    """A table as it stands in the working directory."""
    measured: dict[str, dict[int, dict]] = {}
    for row in table.rows:
        for seed in seeds:
            found = runs.read(apply(runs.base, row, seed=seed))
            if found is not None:
                measured.setdefault(row.name, {})[seed] = found
    return report.make_record(table, runs.base, measured, seeds)


def plan(tables: Sequence[Table], runs: Runs, seeds: Sequence[int], *, rows: bool) -> str:
    """Number of runs to do; with `rows` one line each: training, evaluation, progress."""
    trainings: dict[str, bool] = {}
    evaluations: dict[str, bool] = {}
    lines = []
    for table in tables:
        lines.append(f"{table.name}: {table.title}")
        for row in table.rows:
            for seed in seeds:
                config = apply(runs.base, row, seed=seed)
                trained, measured = runs.is_trained(config), runs.is_measured(config)
                trainings[training_key(config)], evaluations[evaluation_key(config)] = trained, measured
                started = runs.training_directory(config).is_dir()
                state = "done" if measured else "trained" if trained else "started" if started else "to do"
                lines.append(
                    f"  {row.name:20s} seed {seed}  training {training_key(config)}  {state:8s}{_changes(row)}"
                )
    count = (
        f"{len(tables)} table(s), {len(seeds)} seed(s): {len(trainings)} trainings, {sum(trainings.values())} done; "
        f"{len(evaluations)} evaluations, {sum(evaluations.values())} done"
    )
    return "\n".join([*lines, count] if rows else [count])


def _changes(row: Row) -> str:
    return "  " + " ".join(f"{key}={value}" for key, value in row.changes.items())


def _collect(document: pathlib.Path, workdir: pathlib.Path) -> int:
    files = [workdir / f"{name}.json" for name in TABLES if (workdir / f"{name}.json").is_file()]
    if not files:
        raise UserError(f"{workdir}: no tables here yet; make them with `ablate --table ... --workdir {workdir}`")
    for path in report.collect(document, [json.loads(file.read_text()) for file in files]):
        print(path)
    return 0


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
