"""Compare methods: run every method on every task with every seed, as described in one YAML file.

    canon-trl compare comparison.yaml             # do the missing runs and report
    canon-trl compare comparison.yaml --jobs 0    # report only

A run trains with the options in its `options.yaml`, evaluates the trained model with the command `evaluate` and
writes `result.json` at the end. Runs that have a result are skipped, so a killed comparison resumes where it stopped,
and you can add methods, tasks and seeds later.

Keys of the file:

    output_dir    folder of the runs
    report_dir    folder of the report; default: `report` in output_dir
    seeds         list; all methods use the same seeds, and differences are taken per seed
    baseline      name of the method that the others are compared with
    metrics       what the report compares: names from `comparing.metrics.METRICS`, and pass@1, pass@4, ...
    options       options of the command `train` for all runs
    tasks         {name: options}
    methods       {name: options}; `script: train_astar_po` uses that trainer, with values sampled once per task;
                  `tasks: [...]` limits a method to some tasks; `baseline: NAME` compares it with another method.
                  Functions that options name as `module:function` may be in the folder of the file
    values        options of the command `values`, for A*-PO; options shared with training come from
                  `options` and the task
    evaluate      options of the command `evaluate` for the trained model
    launcher      command that starts a run; default: this Python interpreter
    keep_models   whether to keep the trained models; default true
    results_dir   folder for one small JSON file per finished run, to be committed; these runs are not repeated.
                  Default: the results stay in output_dir
    runs_per_process  number of runs that a process does one after the other, which saves imports; default 1
    predictions   {task: {method: {metric: higher, lower or none}}}, written before the runs: the difference from the
                  method's baseline. The report shows it next to the result
    exploratory   whether the intervals of the report hold separately instead of jointly; default false

Keys of a study, whose question is decided before its runs:

    contrasts         list of {task, method, minus, prediction}, the differences that the study was made for. Their
                      intervals are corrected for their number. All other differences are exploratory
    primary           the metric of the contrasts and of the tuning; an accuracy if learning rates are tuned
    learning_rates    list; a method uses the one with the best mean of `primary` on a task over the tuning seeds
    tuning_seeds      list of seeds, none of them in `seeds`
"""

import argparse
import os
import sys
from pathlib import Path

from canon_trl.cli import evaluate, train
from canon_trl.cli.errors import begin_work
from canon_trl.comparing import report
from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.executing import collect, execute_all, unfinished
from canon_trl.comparing.files import read_json
from canon_trl.comparing.performing import Commands, perform_all


def main(argv: list[str] | None = None) -> None:
    """Do the missing runs of a comparison, and report."""
    parser = argparse.ArgumentParser(
        prog="canon-trl compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="YAML file of the comparison")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; 0 only reports")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--perform", action="store_true", help=argparse.SUPPRESS)  # how this command calls itself
    options = parser.parse_args(argv)
    if options.jobs < 0 or options.threads < 1:
        raise ValueError(f"jobs={options.jobs} must be at least 0 and threads={options.threads} at least 1")
    if options.perform:
        if not perform_all(read_json(options.file), Commands(train.main, evaluate.main)):
            sys.exit(1)
        return
    comparison = Comparison.load(options.file)
    missing = unfinished(comparison)
    begin_work()
    failed = execute_all(comparison, missing, options.jobs, options.threads) if options.jobs else []
    untuned = comparison.untuned()
    for line in untuned:
        print(line, flush=True)
    if results := collect(comparison):
        report.write(comparison, results, command=f"canon-trl compare {options.file}")
    else:
        report.redraw(comparison)
    if failed:
        sys.exit(f"{len(failed)} of {len(missing)} runs failed")
    if stuck := sum(untuned.values()):
        sys.exit(f"tuning is finished, but no learning rate can be chosen for {stuck} of the methods above")


def run(argv: list[str]) -> None:
    """Compare, then end the process."""
    main(argv)
