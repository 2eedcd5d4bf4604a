"""Report the results of sweeps: best batch size, gaps between methods, robustness, cost, critical batch size.

Reads sweep directories, run directories, or a CSV or Parquet file of another trainer's runs. Writes a page, figures,
tables and summary.json. It needs no accelerator.
"""

from pathlib import Path

from smallbatch.analysis.report.options import DEFAULTS, Options
from smallbatch.config import cli
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError
from smallbatch.files import paths

COLUMNS = (
    "meaning of its columns: batch_size=COLUMN,loss_nats=COLUMN,...; a hyperparameter's COLUMN alone; -COLUMN to ignore"
)
NATS = Interval(0, 1000)
OVERHEAD = Interval(0, 1e6)
FLAGS = (
    Key("--out", None, str, "directory of the report; unset: WORKDIR/report, or ./report for several or for a --csv"),
    Key("--csv", None, str, "CSV or Parquet file with one row per run"),
    Key("--columns", None, str, COLUMNS),
    Key("--delta_nats", DEFAULTS.delta_nats, float, "losses up to this much above the best count as good", NATS),
    Key("--target_loss_nats", None, float, "target loss for costs and critical batch sizes; unset: automatic", NATS),
    Key("--overhead_frac", DEFAULTS.overhead_frac, float, "overhead that defines the critical batch size", OVERHEAD),
    Key("--reference_batch_size", None, float, "start of perfect scaling; unset: the smallest", Interval(0, 1e12)),
)


def main(words: list[str], flags) -> None:
    if not words and not flags.csv:
        raise UserError("there are no runs to report; give a sweep directory (WORKDIR) or a file of runs (--csv=FILE)")
    if flags.columns and not flags.csv:
        raise UserError("--columns needs a file of runs; add --csv=FILE, or remove --columns")
    directories = [paths.local(word) for word in words]
    csv = paths.local(flags.csv, "--csv") if flags.csv else None
    one_directory = len(directories) == 1 and csv is None
    default = directories[0] / "report" if one_directory else Path("report")
    out = paths.local(flags.out, "--out") if flags.out else default

    from smallbatch.analysis.analyze import analyze
    from smallbatch.analysis.read import columns, sweeps
    from smallbatch.analysis.read.run_table import joined
    from smallbatch.analysis.report import output
    from smallbatch.analysis.report.report_dir import ReportDirectory

    tables = [sweeps.read(directories)] if directories else []
    if csv is not None:
        tables.append(columns.read(csv, flags.columns or ""))
    options = Options(flags.delta_nats, flags.target_loss_nats, flags.overhead_frac, flags.reference_batch_size)
    ReportDirectory(out, [*directories, *([csv] if csv else [])])  # checks it before the slow analysis
    analysis = analyze(joined(tables), options)
    page = output.write(analysis, out)
    print(f"{output.text(analysis)}\n\n{page}")


if __name__ == "__main__":
    cli.run(main, FLAGS, config=False, words="WORKDIR ...")
