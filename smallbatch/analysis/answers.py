"""The answers, in sentences: what a grid says, and what is to be known before one believes it.

One idea: every sentence is made from rows of a sheet, names its numbers' conditions, and is not said where the rows do
not carry it; then it is said what is missing.
"""

import numpy as np

from smallbatch.analysis import gaps
from smallbatch.analysis.budgets import curve_kind
from smallbatch.analysis.robustness import scale_text
from smallbatch.analysis.sheets import Row, batch_text, key_text, loss_text, split
from smallbatch.analysis.study import Study


def answers(study: Study) -> list[str]:
    """Return what the grids say, most important first."""
    said: list[str] = []
    for setting in study.table.settings:
        rows = [row for row in study.rows("equal_flops") if row["setting"] == setting]
        finite = [row for row in rows if _finite(row["chosen_loss_nats"])]
        where = f"On this grid ({setting})" if len(study.table.settings) > 1 else "On this grid"
        if not finite:
            said.append(f"{where} no run came to a finite loss: nothing can be said about batch sizes.")
            continue
        said.append(_best(where, min(finite, key=lambda row: row["chosen_loss_nats"])))
        said += _batch_sizes(study, setting, finite)
        said += _gaps(study, setting)
        said += _widths(study, setting)
        said += _rates(study, setting)
        said += _critical(study, setting)
        said += _costs(study, setting)
    said += [
        f"{row['arm']}: the critical batch size grows as {row['against']}^{row['exponent']:.2f}{_range(row, 'exponent', '.2f')}."
        for row in study.rows("critical_batch_laws")
    ]
    return said


def _best(where: str, row: Row) -> str:
    seeds, chosen = row["reporting_seeds"], f" ({row['chosen']})" if row["chosen"] else ""
    how = f"the mean of {seeds} seed{'s' * (seeds != 1)} that did not choose it" if row["held_out"] else "the run that chose it"
    trials = f"{row['trials']} trial{'s' * (row['trials'] != 1)}"
    return (
        f"{where} the lowest loss is {loss_text(row['chosen_loss_nats'], _interval(row, 'chosen_loss_nats'))} nats, "
        f"{how}: {row['arm']} at batch size {batch_text(row['batch_size'])}{chosen}, chosen from {trials}."
    )


def _batch_sizes(study: Study, setting: str, rows: list[Row]) -> list[str]:
    """Which batch sizes are as good as the best of an arm, and which of those is the fastest."""
    said = []
    speed = {(r["arm"], r["batch_size"]): r["tokens_per_sec"] for r in study.rows("hardware") if r["setting"] == setting}
    for (arm,), own in split(rows, "arm").items():
        if len(own) < 2:
            continue
        best = min(own, key=lambda row: row["chosen_loss_nats"])
        good = [r for r in own if r["chosen_loss_nats"] <= best["chosen_loss_nats"] + study.questions.delta_nats]
        worst = max(own, key=lambda row: row["chosen_loss_nats"])
        sentence = f"{arm}: batch size {batch_text(best['batch_size'])} is best ({loss_text(best['chosen_loss_nats'])} nats); "
        others = [batch_text(row["batch_size"]) for row in good if row is not best]
        within = f"within {study.questions.delta_nats:g} nats of it"
        verb = "is" if len(others) == 1 else "are"
        sentence += f"{_and(others)} {verb} {within}" if others else f"no other is {within}"
        if worst not in good:
            sentence += f"; at {batch_text(worst['batch_size'])} the loss is {loss_text(worst['chosen_loss_nats'])}"
        known = {r["batch_size"]: s for r in good if np.isfinite(s := speed.get((arm, r["batch_size"]), np.nan))}
        if len(known) > 1:
            fastest = max(known, key=known.__getitem__)
            ratio = known[fastest] / known.get(best["batch_size"], known[fastest])
            sentence += f"; of these, {batch_text(fastest)} was the fastest here"
            sentence += f" ({ratio:.2g} x the tokens per second of the best)" if ratio > 1.005 else ""
        said.append(sentence + ".")
    return said


def _gaps(study: Study, setting: str) -> list[str]:
    said = []
    rows = [row for row in study.rows("gaps") if row["setting"] == setting]
    reference = str(gaps.reference_arm(study.table))
    for arm in study.table.arms:
        own = [row for row in gaps.between(rows, arm, reference) if _finite(row["gap_nats"])]
        if own:
            ends = own if len(own) < 3 else [own[0], own[-1]]
            parts = [f"{r['gap_nats']:+.3f}{_range(r, 'gap_nats', '+.3f')} at batch size {batch_text(r['batch_size'])}" for r in ends]
            said.append(f"{arm} minus {reference}, in nats: {_and(parts)}.")
    return said


def _widths(study: Study, setting: str) -> list[str]:
    said = []
    rows = [row for row in study.rows("robustness") if row["setting"] == setting]
    for (arm, name), own in split(rows, "arm", "hyperparameter").items():
        ends = own if len(own) < 3 else [own[0], own[-1]]
        parts = [
            f"{'more than ' * r['wider_than_grid']}{r['width_log2']:.1f} doublings at batch size {batch_text(r['batch_size'])}"
            for r in ends
        ]
        good = f"within {study.questions.delta_nats:g} nats"
        said.append(f"{arm}: the range of {scale_text(name)} {good} of its best spans {_and(parts)}.")
    return said


def _rates(study: Study, setting: str) -> list[str]:
    rows = [row for row in study.rows("learning_rate_laws") if row["setting"] == setting]
    return [
        f"{row['arm']}: the best learning rate goes as batch size^{row['exponent']:.2f}{_range(row, 'exponent', '.2f')}, over "
        f"{row['batch_sizes']} batch sizes"
        + (f"; {row['left_out_at_edge']} left out, at the edge of their grids" if row["left_out_at_edge"] else "") + "."
        for row in rows
    ]  # fmt: skip


def _critical(study: Study, setting: str) -> list[str]:
    said = []
    for row in study.rows("critical_batch"):
        if row["setting"] != setting:
            continue
        beyond = "; that is beyond the batch sizes that were measured" if row["beyond_measured"] else ""
        scale = row["median_noise_scale_seqs"]
        noise = f". The gradient noise scale beside it: {scale:.3g} sequences" if scale else ""
        said.append(
            f"{row['arm']}: the critical batch size is {row['critical_batch_size']:.3g}"
            f"{_range(row, 'critical_batch_size', '.3g')} sequences ({row['definition']}){beyond}{noise}."
        )
    return said


def _costs(study: Study, setting: str) -> list[str]:
    rows = [row for row in study.rows("cost_to_target") if row["setting"] == setting]
    said = []
    for axis, unit in (("flops", "FLOPs"), ("secs", "seconds")):
        reached = [row for row in rows if np.isfinite(row[axis])]
        if len(reached) > 1:
            least = min(reached, key=lambda row: row[axis])
            most = max(reached, key=lambda row: row[axis])
            kind = "" if least["loss"] == "end" else f"{least['loss']} "
            said.append(
                f"The fewest {unit} to a {kind}loss of {least['target_loss_nats']:g} nats: {least['arm']} at batch size "
                f"{batch_text(least['batch_size'])}; {most['arm']} at {batch_text(most['batch_size'])} takes "
                f"{most[f'{axis}_ratio']:.3g} x as many; {len(rows) - len(reached)} of {len(rows)} never get there."
            )
    return said


def warnings(study: Study) -> list[str]:
    """Return what is to be known before the answers are believed."""
    table, said = study.table, []
    counts = {status: sum(run.status == status for run in table.runs) for status in ("missing", "failed", "cut", "diverged")}
    of = f"of {len(table.runs)} runs"
    if counts["missing"]:
        said.append(f"{counts['missing']} {of} are missing: not run, or not finished. Their cells are left out, not guessed.")
    if counts["failed"]:
        said.append(f"{counts['failed']} {of} failed; look at failed.json in their directories. They count as missing.")
    if counts["cut"]:
        said.append(f"{counts['cut']} {of} were cut short by early stopping: counted as worse than any finished one.")
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
    chosen = [row for row in study.rows("equal_flops") if _finite(row["chosen_loss_nats"])]
    if not_repeated := [row for row in chosen if row["noise_over_seeds_nats"] is None]:
        said.append(f"{len(not_repeated)} of {len(chosen)} grids have one seed a cell: no interval can be given for them.")
    if flattered := [row for row in chosen if not row["held_out"] and row["trials"] > 1]:
        said.append(f"In {len(flattered)} of {len(chosen)} grids the seed that chose the cell reports it: its loss flatters.")
    said += _unequal(study)
    return [*said, *table.notes]


def _unequal(study: Study) -> list[str]:
    """Say where the comparison is not between equals: grids, budgets, datasets, versions."""
    said = []
    for (setting, arm), rows in split(study.rows("equal_flops"), "setting", "arm").items():
        sizes = {row["trials"] for row in rows}
        if len(sizes) > 1:
            said.append(f"{arm} ({setting}): {min(sizes)} to {max(sizes)} trials a batch size; more trials find a lower minimum.")
    for (setting,), rows in split(study.rows("equal_flops"), "setting").items():
        spent = [row["flops"] for row in rows if _finite(row["flops"])]
        if spent and max(spent) > 1.01 * min(spent):
            said.append(f"{setting}: runs spent {min(spent):.3g} to {max(spent):.3g} FLOPs; final losses are not at equal FLOPs.")
    datasets = {sha for sweep in study.table.provenance for sha in sweep.get("datasets", ())}
    if len(datasets) > 1:
        said.append(f"The runs saw {len(datasets)} different datasets: their losses cannot be compared.")
    for package in ("smallbatch", "jax"):
        versions = {v for sweep in study.table.provenance for v in sweep.get("versions", {}).get(package, ())}
        if len(versions) > 1:
            said.append(f"The runs were made with {package} {_and(sorted(versions))}.")
    return said


def unsaid(study: Study) -> dict[str, str]:
    """Return, by section, what cannot be said and what it would take."""
    sizes = len(study.table.batch_sizes)
    one = "There is one batch size; " if sizes == 1 else ""
    records = "" if curve_kind(study.table) != "end" else "These runs have no records along the way; "
    return {
        "loss": "No run came to a finite loss.",
        "gaps": "A gap needs two arms with a finite loss at the same batch size.",
        "curves": f"{records}curves need metrics.jsonl with at least two records a run.",
        "cost": f"{records}a cost needs runs that reach a common loss, with tokens, FLOPs, steps or seconds.",
        "robustness": "Robustness needs a hyperparameter with two values or more at the same batch size.",
        "search": "Random search needs a grid of two cells or more at the same batch size.",
        "rates": f"{one}a law of the learning rate needs two batch sizes whose best is inside its grid.",
        "critical": f"{one}a critical batch size needs three batch sizes that reach one loss, with their steps.",
        "gradients": "No run recorded gradients; set train.diagnostics.",
        "hardware": "Speed and memory were not recorded.",
    }


def _place(study: Study, row: Row) -> str:
    setting = f" ({row['setting']})" if len(study.table.settings) > 1 else ""
    return f"{row['arm']}{setting} at batch size {batch_text(row['batch_size'])}"


def _interval(row: Row, name: str) -> tuple[float, float] | None:
    return None if row[f"{name}_low"] is None else (row[f"{name}_low"], row[f"{name}_high"])


def _range(row: Row, name: str, form: str) -> str:
    interval = _interval(row, name)
    return f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
