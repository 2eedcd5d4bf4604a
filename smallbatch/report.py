"""Report what a grid says: best batch size, optimizer gaps, robustness, cost, critical batch size.

Reads sweep directories, run directories, or a CSV or Parquet file of another trainer's runs, and writes a page, tables
and summary.json. It needs no accelerator, and the runs may be years old.
"""

from pathlib import Path

from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError
from smallbatch.files import paths

COLUMNS = (
    "meaning of its columns: batch_size=COLUMN,loss_nats=COLUMN,...; a hyperparameter's COLUMN alone; -COLUMN to ignore"
)
NATS = Interval(0, 1000)
FLAGS = (
    Key("--out", None, str, "directory of the report; unset: WORKDIR/report, or ./report for several or for a --csv"),
    Key("--csv", None, str, "CSV or Parquet file with one row per run"),
    Key("--columns", None, str, COLUMNS),
    Key("--delta_nats", 0.02, float, "losses up to this much above the best count as good", NATS),
    Key("--target_loss_nats", None, float, "target loss of costs and critical batch sizes; unset: chosen", NATS),
    Key("--overhead_frac", 0.2, float, "overhead that defines the critical batch size", Interval(0, 1e6)),
    Key("--reference_batch_size", None, float, "start of perfect scaling; unset: the smallest", Interval(0, 1e12)),
)


def main(words: list[str], flags) -> None:
    if not words and not flags.csv:
        raise UserError("name a sweep directory: python -m smallbatch.report WORKDIR, or a file: --csv=runs.csv")
    if flags.columns and not flags.csv:
        raise UserError("--columns names the columns of a --csv, and there is none")
    directories = [paths.local(word) for word in words]
    out = paths.local(flags.out, "--out") if flags.out else None
    csv = paths.local(flags.csv, "--csv") if flags.csv else None
    from smallbatch.analysis.read import columns, sweeps
    from smallbatch.analysis.read.run_table import joined
    from smallbatch.analysis.report import output, study
    from smallbatch.analysis.report.report_dir import ReportDirectory

    default = directories[0] / "report" if len(directories) == 1 and csv is None else Path("report")
    out = out or default
    tables = [sweeps.read(directories)] if directories else []
    if csv is not None:
        tables.append(columns.read(csv, flags.columns or ""))
    questions = study.Questions(
        flags.delta_nats, flags.target_loss_nats, flags.overhead_frac, flags.reference_batch_size
    )
    ReportDirectory(out, [*directories, *([csv] if csv else [])])  # check it before the long work
    found = study.analyze(joined(tables), questions)
    page = output.write(found, out)
    print(f"{output.text(found)}\n\n{page}")


if __name__ == "__main__":
    cli.run(main, FLAGS, config=False, words="WORKDIR ...")
