"""The answers, in sentences: what a grid says.

One idea: every sentence is made from rows of a sheet, names its numbers' conditions, and is not said where the rows do
not carry it. What is to be known before one believes them is in caveats.py.
"""

import numpy as np

from smallbatch.analysis import critical_batch, gaps
from smallbatch.analysis.report.study import Study
from smallbatch.analysis.report.tables import Row, batch_text, counted, finite_number, listed, loss_text, split
from smallbatch.analysis.robustness import scale_text

FIRST = "Which batch size"


def answers(study: Study) -> dict[str, list[str]]:
    """Return what the grids say, {topic: sentences}, most important first; with several settings, topics of each."""
    said: dict[str, list[str]] = {}
    several = len(study.table.settings) > 1
    for setting in study.table.settings:
        rows = [row for row in study.rows("equal_flops") if row["setting"] == setting]
        finite = [row for row in rows if finite_number(row["chosen_loss_nats"])]
        losses = {row["chosen_loss_nats"] for row in finite}
        if len(losses) == 1 < len(finite):
            best = [f"On this grid all came to the same loss, {losses.pop():g} nats; look at what it cost."]
        elif finite:
            best = [_best(min(finite, key=lambda row: row["chosen_loss_nats"])), *_batch_sizes(study, setting, finite)]
        else:
            best = ["On this grid no run came to a finite loss: nothing can be said about batch sizes."]
        topics = {
            FIRST: best,
            "Which optimizer": _gaps(study, setting),
            "How robust": _widths(study, setting),
            "Learning rate": _rates(study, setting),
            "At what cost": _costs(study, setting),
            **_critical(study, setting),
        }
        said |= {f"{topic} · {setting}" if several else topic: own for topic, own in topics.items() if own}
    laws = [
        f"{row['arm']}: it grows as {row['against']}^{row['exponent']:.3f}{_range(row, 'exponent', '.3f')}, over "
        f"{row['points']} settings."
        for row in study.rows("critical_batch_laws")
    ]
    return said | ({"Critical batch size at scale": laws} if laws else {})


def _best(row: Row) -> str:
    chosen = f" ({row['chosen']})" if row["chosen"] else ""
    if row["held_out"]:
        how = f"mean of {counted(row['reporting_seeds'], 'seed')} that did not choose it"
    else:
        how = "by the same runs that chose it" if row["trials"] > 1 else ""
    how = f"; {how}, out of {counted(row['trials'], 'trial')}" if how else ""
    loss = loss_text(row["chosen_loss_nats"], _interval(row, "chosen_loss_nats"))
    where = f"{row['arm']} at batch size {batch_text(row['batch_size'])}{chosen}"
    return f"On this grid the lowest loss is {loss} nats: {where}{how}."


def _batch_sizes(study: Study, setting: str, rows: list[Row]) -> list[str]:
    """Which batch sizes are as good as the best of an arm, and which of those is the fastest."""
    said = []
    speed = {
        (r["arm"], r["batch_size"]): r["tokens_per_sec"] for r in study.rows("hardware") if r["setting"] == setting
    }
    for (arm,), own in split(rows, "arm").items():
        if len(own) < 2:
            continue
        best = min(own, key=lambda row: row["chosen_loss_nats"])
        good = [r for r in own if r["chosen_loss_nats"] <= best["chosen_loss_nats"] + study.questions.delta_nats]
        worst = max(own, key=lambda row: row["chosen_loss_nats"])
        sentence = (
            f"{arm}: batch size {batch_text(best['batch_size'])} is best ({loss_text(best['chosen_loss_nats'])} nats); "
        )
        others = [batch_text(row["batch_size"]) for row in good if row is not best]
        within = f"within {study.questions.delta_nats:g} nats of it"
        verb = "is" if len(others) == 1 else "are"
        sentence += f"{listed(others)} {verb} {within}" if others else f"no other is {within}"
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
        own = [row for row in gaps.between(rows, arm, reference) if finite_number(row["gap_nats"])]
        if own:
            said.append(_gap(own))
    return said


def _gap(rows: list[Row]) -> str:
    """Return the largest gap between two arms and every change of its sign."""
    size = lambda row: batch_text(row["batch_size"])
    gap = lambda row: f"{row['gap_nats'] + 0.0:+.3f}{_range(row, 'gap_nats', '+.3f')}"  # + 0.0: no -0.000
    largest = max(rows, key=lambda row: abs(row["gap_nats"]))
    difference = f"{largest['arm']} minus {largest['minus_arm']}"
    if len(rows) == 1:
        return f"{difference}: {gap(largest)} nats at batch size {size(largest)}."
    over = f"over {len(rows)} batch sizes"
    largest_of = f"{difference}: the largest gap {over} is {gap(largest)} nats at batch size {size(largest)}."
    if not largest["gap_nats"]:
        return f"{difference}: the gap is 0 nats at all {len(rows)} batch sizes."
    changes = gaps.sign_changes(rows)
    if not changes:
        least = min(rows, key=lambda row: abs(row["gap_nats"]))
        return f"{largest_of} Its sign is the same at all of them; the smallest is {gap(least)} nats at {size(least)}."
    parts = [f"{size(a)} ({a['gap_nats']:+.3f}) and {size(b)} ({b['gap_nats']:+.3f})" for a, b in changes]
    unclear = [r for pair in changes for r in pair if (i := _interval(r, "gap_nats")) and i[0] <= 0 <= i[1]]
    note = ", where a 90% interval includes 0" if unclear and len(changes) == 1 else ""
    note = "; next to some of these changes a 90% interval includes 0" if unclear and len(changes) > 1 else note
    return f"{largest_of} Its sign changes between batch sizes {', between '.join(parts)}{note}."


def _widths(study: Study, setting: str) -> list[str]:
    said = []
    rows = [row for row in study.rows("robustness") if row["setting"] == setting]
    for (arm, name), own in split(rows, "arm", "hyperparameter").items():
        known = sorted((r for r in own if r["width_log2"] is not None), key=lambda r: r["width_log2"])
        parts = [
            f"{'at least ' * r['wider_than_grid']}{r['width_log2']:.1f} doublings at batch size "
            f"{batch_text(r['batch_size'])}"
            for r in (known if len(known) < 3 else [known[0], known[-1]])
        ]
        good = f"within {study.questions.delta_nats:g} nats"
        if parts:
            between = " (narrowest and widest)" if len(known) > 2 else ""
            said.append(f"{arm}: the range of {scale_text(name)} {good} of its best spans {listed(parts)}{between}.")
        for (reason,), unknown in split((r for r in own if r["no_width_because"]), "no_width_because").items():
            sizes = listed([batch_text(row["batch_size"]) for row in unknown])
            said.append(
                f"{arm}: the range of {scale_text(name)} {good} of its best cannot be given at batch size {sizes}: "
                f"{reason}."
            )
    return said


def _rates(study: Study, setting: str) -> list[str]:
    rows = [row for row in study.rows("learning_rate_laws") if row["setting"] == setting]
    return [
        f"{row['arm']}: the best learning rate scales as batch size^{row['exponent']:.2f}"
        f"{_range(row, 'exponent', '.2f') or ' (an interval needs three)'}, over {row['batch_sizes']} batch sizes"
        + (f"; {row['left_out_at_edge']} left out, at the edge of their grids" if row["left_out_at_edge"] else "") + "."
        for row in rows
    ]  # fmt: skip


def _critical(study: Study, setting: str) -> dict[str, list[str]]:
    """Return {topic: sentences}, one topic per target loss, since values at different losses are not comparable."""
    said: dict[str, list[str]] = {}
    rows = [row for row in study.rows("critical_batch") if row["setting"] == setting]
    several = len({row["target_loss_nats"] for row in rows}) > 1
    for row in rows:
        topic = "Critical batch size" + (f", target {row['target_loss_nats']:g} nats" if several else "")
        beyond = "; that is beyond the batch sizes that were measured" if row["beyond_measured"] else ""
        scale = row["median_noise_scale_seqs"]
        noise = f". The gradient noise scale beside it: {scale:.3g} sequences" if scale else ""
        said.setdefault(topic, []).append(
            f"{row['arm']}: the critical batch size is {critical_batch.estimate_text(row)} ({row['definition']})"
            f"{beyond}{noise}."
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
                f"The fewest {unit} to a {kind}loss of {least['target_loss_nats']:g} nats: {least['arm']} at batch "
                f"size {batch_text(least['batch_size'])}; {most['arm']} at {batch_text(most['batch_size'])} takes "
                f"{most[f'{axis}_ratio']:.3g} x as many; {len(rows) - len(reached)} of {len(rows)} never get there."
            )
    return said


def _interval(row: Row, name: str) -> tuple[float, float] | None:
    return None if row[f"{name}_low"] is None else (row[f"{name}_low"], row[f"{name}_high"])


def _range(row: Row, name: str, form: str) -> str:
    interval = _interval(row, name)
    return f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""
