"""Write the warnings of a report, and the text of sections without data.

Every limitation is a warning on the first screen: missing cells, optima at the edge of a grid, single seeds, and
comparisons of unequal grids.
"""

import numpy as np

from smallbatch.analysis.budgets import curve_kind
from smallbatch.analysis.report.study import Study
from smallbatch.analysis.report.tables import Row, batch_text, finite_number, key_text, listed, split

NAMED = 3  # failed runs listed by name in a warning


def warnings(study: Study) -> list[str]:
    """Return what is to be known, the gravest first."""
    table, said = study.table, []
    counts = {
        status: sum(run.status == status for run in table.runs)
        for status in ("missing", "failed", "cut", "skipped", "diverged")
    }
    of = f"of {len(table.runs)} runs"
    if counts["missing"]:
        said.append(
            f"{counts['missing']} {of} are missing: not run, or not finished. Their cells are left out, not guessed."
        )
    if counts["failed"]:
        said.append(_failed(study, of))
    if counts["cut"]:
        said.append(f"{counts['cut']} {of} were cut short by early stopping: counted as worse than any finished one.")
    if counts["skipped"]:
        said.append(f"{counts['skipped']} {of} were skipped above a learning rate that diverged: counted as diverged.")
    if counts["diverged"]:
        said.append(f"{counts['diverged']} {of} diverged: counted as a loss of +infinity.")
    for row in study.rows("equal_flops"):
        if row["chosen_loss_nats"] is not None and np.isinf(row["chosen_loss_nats"]):
            said.append(f"{_place(study, row)}: the chosen cell ({row['chosen']}) diverged with other seeds.")
    edges = [row for row in study.rows("robustness") if row["edge_of_grid"]]
    said += [
        f"{_place(study, row)}: the best {key_text(row['hyperparameter'])} is the {row['edge_of_grid']} of its grid: "
        "optimum at the edge, widen the grid."
        for row in edges
    ]
    chosen = [row for row in study.rows("equal_flops") if finite_number(row["chosen_loss_nats"])]
    if not_repeated := [row for row in chosen if row["noise_over_seeds_nats"] is None]:
        said.append(
            f"{len(not_repeated)} of {len(chosen)} grids have one seed per configuration: their losses, gaps, widths "
            "and best learning rates have no intervals, and differences may be due to chance. Intervals of fitted "
            "laws come from the scatter of the points about them."
        )
    if flattered := [row for row in chosen if not row["held_out"] and row["trials"] > 1]:
        said.append(
            f"In {len(flattered)} of {len(chosen)} grids the seed that chose the cell reports it: its loss flatters."
        )
    said += _unequal(study)
    said += _targets(study)
    said += _validation_noise(study)
    return [*said, *table.notes]


def _failed(study: Study, of: str) -> str:
    """Return the warning about failed runs, which lists the error file of each, or its row in a table."""
    failed = [run.failure_file or run.source for run in study.table.runs if run.status == "failed"]
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    verb = "is" if len(failed) == 1 else "are"
    return f"{len(failed)} {of} failed ({'; '.join(failed[:NAMED])}{more}) and {verb} counted as missing."


def _targets(study: Study) -> list[str]:
    """Return a warning for each setting whose critical batch sizes have different target losses."""
    said = []
    for (setting,), rows in split(study.rows("critical_batch"), "setting").items():
        targets = [f"{row['arm']} {row['target_loss_nats']:g} nats" for row in rows]
        if len({row["target_loss_nats"] for row in rows}) > 1:
            where = f" of {setting}" if len(study.table.settings) > 1 else ""
            said.append(
                f"The critical batch sizes{where} have different target losses ({', '.join(targets)}) and cannot be "
                "compared; set --target_loss_nats to use the same target loss for all of them."
            )
    return said


def _validation_noise(study: Study) -> list[str]:
    """Return a warning if gaps between arms are below the standard error of the validation loss."""
    errors = [run.validation_loss_se_nats for run in study.table.runs if np.isfinite(run.validation_loss_se_nats)]
    gaps = [abs(row["gap_nats"]) for row in study.rows("gaps") if finite_number(row["gap_nats"])]
    if not errors or not gaps:
        return []
    error = float(np.median(errors))
    smaller = sum(gap < error for gap in gaps)
    if not smaller:
        return []
    return [
        f"The standard error of the validation loss, {error:.2g} nats, is larger than {smaller} of {len(gaps)} gaps "
        "between arms, so another validation set could reverse their signs. Use a larger validation set."
    ]


def _unequal(study: Study) -> list[str]:
    """Say where the comparison is not between equals: grids, budgets, datasets, versions."""
    said = []
    unequal = []
    for (setting, arm), rows in split(study.rows("equal_flops"), "setting", "arm").items():
        trials = {row["trials"] for row in rows}
        if len(trials) > 1:
            unequal.append(f"{arm} {min(trials)} to {max(trials)}" + f" ({setting})" * (len(study.table.settings) > 1))
    if unequal:
        said.append(f"Trials a batch size are unequal, and more trials find a lower minimum: {listed(unequal)}.")
    for (setting,), rows in split(study.rows("equal_flops"), "setting").items():
        spent = [row["flops"] for row in rows if finite_number(row["flops"])]
        if spent and max(spent) > 1.01 * min(spent):
            said.append(
                f"{setting}: runs spent {min(spent):.3g} to {max(spent):.3g} FLOPs; their final losses are not at "
                "equal FLOPs."
            )
    datasets = {sha for sweep in study.table.provenance for sha in sweep.get("datasets", ())}
    if len(datasets) > 1:
        said.append(f"The runs saw {len(datasets)} different datasets: their losses cannot be compared.")
    for package in ("smallbatch", "jax"):
        versions = {v for sweep in study.table.provenance for v in sweep.get("versions", {}).get(package, ())}
        if len(versions) > 1:
            said.append(f"The runs were made with {package} {listed(sorted(versions))}.")
    return said


def unsaid(study: Study) -> dict[str, str]:
    """Return, by section, what cannot be said and what it would take."""
    sizes = len(study.table.batch_sizes)
    one = "There is one batch size; " if sizes == 1 else ""
    records = "" if curve_kind(study.table) != "end" else "These runs have no records along the way; "
    from_file = all("file" in source for source in study.table.provenance)
    curves = "run directories, since a table has only the final result of each run" if from_file else (
        "metrics.jsonl with at least two records a run"
    )  # fmt: skip
    gradients = "a table has no gradients" if from_file else "set train.diagnostics"
    return {
        "loss": "No run came to a finite loss.",
        "gaps": _no_gap(study),
        "curves": f"{records}curves need {curves}.",
        "cost": f"{records}a cost needs runs that reach a common loss, with tokens, FLOPs, steps or seconds.",
        "robustness": "Robustness needs a hyperparameter with two values or more at the same batch size.",
        "search": "Random search needs a grid of two cells or more at the same batch size.",
        "rates": f"{one}a law of the learning rate needs two batch sizes whose best is inside its grid.",
        "critical": f"{one}a critical batch size needs three batch sizes that reach one loss, with their steps.",
        "gradients": f"No run recorded gradients; {gradients}.",
        "hardware": "Speed and memory were not recorded.",
    }


def _no_gap(study: Study) -> str:
    """Return the reason why there is no gap between arms."""
    arms = study.table.arms
    if len(arms) == 1:
        return f"A gap needs two arms with a finite loss at the same batch size; all runs here belong to {arms[0]}."
    if len(study.table.settings) > 1:
        return (
            "No two arms have a finite loss in the same setting at the same batch size; runs from different sweeps, or "
            "with different models, data or budgets, belong to different settings."
        )
    return "No two arms have a finite loss at the same batch size."


def _place(study: Study, row: Row) -> str:
    setting = f" ({row['setting']})" if len(study.table.settings) > 1 else ""
    return f"{row['arm']}{setting} at batch size {batch_text(row['batch_size'])}"
