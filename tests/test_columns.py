"""CSV and Parquet of other trainers: columns are mapped by name, and invalid files are one-line errors."""

import csv
import math
from pathlib import Path

import duckdb
import pytest

from smallbatch.analysis.analyze import analyze
from smallbatch.analysis.learning_rates import optimum
from smallbatch.analysis.read import columns
from smallbatch.analysis.report import output
from smallbatch.analysis.report.section import Table
from smallbatch.errors import UserError

CASES = Path(__file__).parent / "cases"
CSV = "bs,eval,peak_lr,opt\n1,3.5,0.001,adam\n4,3.6,0.002,adam\n1,nan,0.1,sgd\n"
COLUMNS = "batch_size=bs,loss_nats=eval,arm=opt,peak_lr"


def written(path, text):
    path.write_text(text)
    return path


def outcome(run):
    return run.arm, run.batch_size, run.point, run.status, run.loss_nats


def test_a_csv_is_read_with_its_columns_mapped(tmp_path):
    table = columns.read(written(tmp_path / "runs.csv", CSV), COLUMNS)
    first, _, third = table.runs
    assert (first.batch_size, first.loss_nats, first.arm, first.setting) == (1, 3.5, "adam", "runs")
    assert first.point == (("optimizer.peak_lr", 0.001),)
    assert third.status == "diverged" and third.loss_nats == math.inf
    assert len(table.groups) == 3


def test_parquet_and_csv_give_the_same_runs(tmp_path):
    csv = written(tmp_path / "runs.csv", CSV)
    duckdb.sql(f"copy (select * from read_csv('{csv}')) to '{tmp_path / 'runs.parquet'}'")
    a, b = (columns.read(path, COLUMNS) for path in (csv, tmp_path / "runs.parquet"))
    assert [outcome(run) for run in a.runs] == [outcome(run) for run in b.runs]


def test_our_own_names_need_no_mapping_and_unused_columns_are_listed(tmp_path):
    path = written(tmp_path / "runs.csv", "# a comment\nbatch_size,loss_nats,note\n1,3.5,x\n1,3.6,y\n")
    table = columns.read(path, "-note")
    assert [run.seed for run in table.runs] == [0, 1]  # rows of one point are its seeds
    assert table.notes == ("unused columns of runs.csv: note",)
    other = written(tmp_path / "other.csv", "batch_size,loss_nats,note\n1,3.5,x\n2,3.6,y\n")
    assert columns.read(other, "").notes == ("unused columns of other.csv: note",)


@pytest.mark.parametrize("column", ["learning_rate", "peak_lr", "optimizer.peak_lr"])
@pytest.mark.parametrize("seed", ["", ",0"])
def test_a_learning_rate_under_any_of_its_names_is_a_hyperparameter(tmp_path, column, seed):
    head = f"batch_size,loss_nats,{column}{',seed' * bool(seed)}\n"
    text = head + "".join(f"4,{loss},{rate}{seed}\n" for loss, rate in ((2.4, 0.1), (2.0, 0.2), (2.2, 0.4)))
    (group,) = columns.read(written(tmp_path / "runs.csv", text), "").groups
    assert group.seeds == (0,) and group.values("optimizer.peak_lr") == [0.1, 0.2, 0.4]
    best = optimum(group)
    assert best is not None and best.tuned == 0.2


def test_a_learning_rate_determined_by_other_columns_is_not_a_hyperparameter(tmp_path):
    text = "batch_size,loss_nats,learning_rate,multiplier\n4,2.4,0.1,1\n4,2.0,0.2,2\n8,2.4,0.3,1\n"
    table = columns.read(written(tmp_path / "runs.csv", text), "multiplier")
    assert [run.point for run in table.runs] == [(("multiplier", 1),), (("multiplier", 2),), (("multiplier", 1),)]
    assert [run.learning_rate for run in table.runs] == [0.1, 0.2, 0.3]


def test_our_hyperparameters_need_no_mapping(tmp_path):
    text = "batch_size,loss_nats,t2_tokens,optimizer.b1\n4,2.4,1000,0.9\n4,2.0,2000,0.9\n"
    table = columns.read(written(tmp_path / "runs.csv", text), "")
    assert [run.point for run in table.runs] == [
        (("optimizer.b1", 0.9), ("t2_tokens", tokens)) for tokens in (1000, 2000)
    ]


@pytest.mark.parametrize("seeds", [None, (0, 0), (0, 1)])
def test_runs_that_differ_in_an_unused_column_do_not_count_as_seeds(tmp_path, seeds):
    head, (a, b) = ("", ("", "")) if seeds is None else (",seed", (f",{seed}" for seed in seeds))
    path = written(tmp_path / "runs.csv", f"batch_size,loss_nats,lr,id{head}\n4,2.4,0.1,x{a}\n4,2.0,0.2,y{b}\n")
    with pytest.raises(UserError, match=r"rows 1 and 2 agree .*unused columns: lr, id\. .*\(lr\)\. .*\(-lr,-id\)"):
        columns.read(path, "")
    assert len(columns.read(path, "lr").groups[0].points) == 2
    assert len(columns.read(path, "-lr,-id").groups[0].points) == 1


@pytest.mark.parametrize(
    ("status", "loss", "expected"),
    [
        ("finished", "3.5", "done"),
        ("crashed", "", "failed"),
        ("running", "", "missing"),
        ("finished", "nan", "diverged"),
        ("diverged", "3.5", "diverged"),
        ("Finished", "", "missing"),
    ],
)
def test_the_status_names_of_other_trainers_are_read(tmp_path, status, loss, expected):
    path = written(tmp_path / "runs.csv", f"batch_size,loss_nats,status\n2,2.5,done\n1,{loss},{status}\n")
    assert columns.read(path, "").runs[1].status == expected


@pytest.mark.parametrize(
    ("text", "named", "words"),
    [
        ("batch_size,eval\n1,2\n", "", "has no column loss_nats; map one to it with --columns=loss_nats=COLUMN"),
        ("batch_size,loss_nats\n1,2\n", "batchsize=batch_size", "did you mean batch_size"),
        ("batch_size,loss_nats\n1,2\n", "loss_nats=los", "has no column 'los'"),
        ("batch_size,loss_nats\n1,2\n", "lr", "has no column 'lr'"),
        ("batch_size,loss_nats\n1,2\n", "-lr", "has no column 'lr'"),
        ("batch_size,loss_nats\n", "", "has no rows"),
        ("batch_size,loss_nats\nx,2\n", "", "row 1: batch_size is 'x', not a number"),
        ("batch_size,loss_nats\n0,2\n", "", "row 1: batch_size is 0, not a number above 0"),
        ("batch_size,loss_nats,status\n1,2,splendid\n", "", "row 1: status is 'splendid'; use one of done"),
        ("batch_size,loss_nats,seed\n1,2,a\n", "", "row 1: seed is 'a', not a whole number"),
        ("", "", "runs.csv"),
    ],
)
def test_an_invalid_file_is_a_one_line_error(tmp_path, text, named, words):
    with pytest.raises(UserError) as raised:
        columns.read(written(tmp_path / "runs.csv", text), named)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_or_invalid_parquet_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        columns.read(tmp_path / "no.csv", "")
    with pytest.raises(UserError, match=r"cannot read .*give a CSV"):
        columns.read(written(tmp_path / "runs.parquet", CSV), "")


def rows_of(name: str, named: str = "") -> list[tuple]:
    return [(run.arm, run.batch_size, run.loss_nats) for run in columns.read(CASES / name, named).runs]


def test_a_number_sign_inside_a_value_is_data():
    found = analyze(columns.read(CASES / "hash_in_value.csv", ""))
    assert [run.arm for run in found.runs.runs] == ["adam #1", "adam #2", "adam #1", "adam #2"]
    assert found.findings()["Best batch size"][0].startswith(
        "The lowest loss is 3.050 nats, with adam #1 at batch size 4"
    )


def test_seeds_written_as_floats_are_integers_and_peak_lr_is_the_learning_rate():
    table = columns.read(CASES / "seed_as_float.csv", "batch_size=bs,loss_nats=val_loss,seed,peak_lr=lr")
    assert [run.seed for run in table.runs] == [0, 1, 0, 1]
    assert [group.seeds for group in table.groups] == [(0, 1), (0, 1)]
    assert [run.point for run in table.runs[::2]] == [(("optimizer.peak_lr", rate),) for rate in (0.001, 0.002)]
    assert [run.learning_rate for run in table.runs] == [0.001, 0.001, 0.002, 0.002]


def test_decimal_commas_and_thousands_separators_are_read():
    assert rows_of("semicolon_decimal_comma.csv") == [("all runs", 1, 3.10), ("all runs", 4, 3.05)]
    assert rows_of("thousands.csv") == [("all runs", 1024, 3.10), ("all runs", 4096, 3.40)]
    assert [run.tokens for run in columns.read(CASES / "thousands.csv", "").runs] == [2**20, 2**20]


def test_crashed_and_failed_runs_of_a_tracker_are_reported_by_row():
    named = "batch_size=bs,loss_nats=val_loss,peak_lr=lr,seed,status=State,-Name,-_step"
    found = analyze(columns.read(CASES / "tracker_export.csv", named))
    assert [run.status for run in found.runs.runs] == ["done", "done", "failed", "done", "done", "failed"]
    said = output.text(found)
    assert "2 of 6 runs failed (tracker_export.csv, row 3; tracker_export.csv, row 6)" in said
    assert not any(file in said for file in ("failed.json", "metrics.jsonl"))
    empty = [section.empty(found) for section in found.sections]
    assert not any("metrics.jsonl" in text or "train." in text for text in empty)


@pytest.mark.parametrize(
    ("text", "batch_size", "loss"),
    [
        ("batch_size;loss_nats\n1.024;3,05\n", 1024, 3.05),
        ("batch_size\tloss_nats\n1'024\t3.05\n", 1024, 3.05),
        ("batch_size,loss_nats\n1\u202f024,3.050\n", 1024, 3.05),
        ("\ufeffbatch_size,loss_nats\r\n1e3,3.05\r\n\r\n", 1000, 3.05),
    ],
)
def test_numbers_are_read_in_common_formats(tmp_path, text, batch_size, loss):
    (run,) = columns.read(written(tmp_path / "runs.csv", text), "").runs
    assert (run.batch_size, run.loss_nats) == (batch_size, loss)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_size;loss_nats\n1;3,05\n2;3.05\n", "row 1: loss_nats is '3,05', and row 2: loss_nats is '3.05'"),
        ('batch_size,loss_nats\n"1,024",3\n', "row 1: batch_size is '1,024', which can mean 1024 or 1.024; write"),
        ("batch_size,loss_nats\n1.024,3\n", "row 1: batch_size is '1.024', which can mean 1024 or 1.024; write 1024"),
        ('batch_size,loss_nats\n1,"3,050"\n2,3.1\n', "row 1: loss_nats is '3,050'; write a loss with a decimal point"),
        ("batch_size,loss_nats\n1,3,05\n", "row 1 has 3 values ('1,3,05'), but the header has 2 columns; put quotes"),
        ('batch_size,loss_nats,arm\n1,3,"adam\n2,3,sgd\n', "unexpected end of data; put quotes around"),
        ("batch_size,loss_nats,seed\n1,3,\n", "row 1: seed is empty; fill it in, or remove the row, or ignore"),
        ("batch_size,loss_nats,seed\n1,3,0.5\n", "row 1: seed is 0.5, not a whole number; write the seed as"),
        ("batch_size,loss_nats,arm\n1,3,\n", "row 1: arm is empty; fill it in"),
        ("batch_size,batch_size,loss_nats\n1,2,3\n", "has several columns 'batch_size'; rename or remove"),
        ("batch_size,loss_nats,peak_lr,learning_rate,optimizer.peak_lr\n1,2,3,4,5\n", "are the same hyperparameter"),
    ],
)
def test_an_ambiguous_value_is_a_one_line_error_with_a_fix(tmp_path, text, words):
    with pytest.raises(UserError) as raised:
        columns.read(written(tmp_path / "runs.csv", text), "")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_names_that_look_like_numbers_dates_or_null_stay_text(tmp_path):
    names = ["001", "01", "1.0", "nan", "true", "2024-01", "NULL", " spaced ", "日本 #2", 'a "b"', "a,b"]
    with (tmp_path / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("batch_size", "loss_nats", "arm", "kind"), *((4, 3, name, name) for name in names)]
        )
    table = columns.read(tmp_path / "runs.csv", "kind")
    assert list(table.arms) == names
    assert [run.point for run in table.runs] == [(("kind", name),) for name in names]


def test_a_column_that_turns_into_text_after_many_rows_stays_text(tmp_path):
    rows = "".join(f"1,3,0{i:05}\n" for i in range(21_000))  # a type guessed from 20,480 rows drops leading zeros
    table = columns.read(written(tmp_path / "runs.csv", f"batch_size,loss_nats,arm\n{rows}1,3,adam\n"), "")
    assert table.arms[0] == "000000" and table.arms[-1] == "adam"


def test_a_comment_below_the_header_is_reported_and_one_inside_quotes_is_data(tmp_path):
    text = '# made by hand\nbatch_size,loss_nats,arm\n1,3,"two\n# lines"\n#2,3,left out\n'
    table = columns.read(written(tmp_path / "runs.csv", text), "")
    assert [run.arm for run in table.runs] == ["two\n# lines"]
    assert table.notes == ("runs.csv: skipped 1 comments (#) below the header, the first is '#2,3,left out'",)


def test_names_that_differ_only_in_spaces_or_capitals_are_noted(tmp_path):
    table = columns.read(written(tmp_path / "runs.csv", "batch_size,loss_nats,arm\n1,3,Adam\n1,3,adam \n"), "")
    assert table.notes == (
        "runs.csv: the arms 'Adam' and 'adam ' differ only in spaces or capitals; they count as different",
    )


@pytest.mark.parametrize("name", ["runs[1].parquet", "optimizer=adam/runs.parquet"])
def test_the_path_of_a_parquet_file_is_not_a_glob_and_adds_no_columns(tmp_path, name):
    (tmp_path / "optimizer=adam").mkdir()
    for path, loss in ((tmp_path / name, 3.0), (tmp_path / "runs1.parquet", 9.0)):
        duckdb.sql(f"copy (select 4 as batch_size, {loss} as loss_nats) to '{path}' (format parquet)")
    table = columns.read(tmp_path / name, "")
    assert [run.loss_nats for run in table.runs] == [3.0] and table.notes == ()


def test_parquet_lists_become_text_and_nan_is_unset(tmp_path):
    query = "select 4 as batch_size, 3.05::decimal(5, 2) as loss_nats, 0.0::double as seed, [1, 2] as betas, "
    duckdb.sql(f"copy ({query} 'nan'::double as wd) to '{tmp_path / 'runs.parquet'}'")
    (run,) = columns.read(tmp_path / "runs.parquet", "betas,wd").runs
    assert (run.loss_nats, run.seed, run.point) == (3.05, 0, (("betas", "[1, 2]"), ("wd", None)))


NAMES = [
    *("=cmd|' /C calc'!A0", "-1+2", "+x", "@sum", "'=quoted", "''=twice", "-5", "'-5", "#first", "\uff1dwide"),
    *("back\\slash \\1 \\g<0>", "tab\there", "bell\x07 esc\x1b[2J", "cr\rx", "two\nlines", " spaced "),
    *("$x^2$ $\\frac$", "<script>alert(1)</script>", "--comment-->", '#000000 id="x" url(#y)', "_hidden"),
    *("日本語 😀", "\u202eabc", "a" * 5000, "a" * 5000 + "b", "A", "a", "%s {x}", "a/b", "a;b|c"),
]


def table_named(names: list[str]):
    runs = [
        columns.Run(
            setting=name,
            arm=name,
            batch_size=size,
            seed=0,
            point=(("kind", name),),
            status="done",
            loss_nats=3.0 + i / 100,
            steps=1000 / size,
        )
        for i, name in enumerate(names)
        for size in (1, 4)
    ]
    return columns.RunTable(tuple(runs))


def test_our_own_tables_are_read_with_the_same_names_and_contain_no_formula(tmp_path):
    text = output.page.to_csv(analyze(table_named(NAMES)).tables["runs"])
    cells = [cell for line in csv.reader(text.splitlines(keepends=True)) for cell in line]
    assert not [c for c in cells if c[:1] in tuple("=+-@\t\r\uff1d") and not c.lstrip("-+").isdecimal()]
    (tmp_path / "runs.csv").write_bytes(text.encode())
    back = columns.read(tmp_path / "runs.csv", "-point,-source")
    assert [run.arm for run in back.runs] == [name for name in NAMES for _ in range(2)]
    assert list(back.settings) == NAMES


def test_a_negative_number_stays_a_number_in_a_table():
    table = Table("gaps", "Gaps", ({"gap": -0.5, "to": -math.inf},))
    assert output.page.to_csv(table) == "gap,to\n-0.5,-inf\n"


def test_apostrophes_of_an_unescaped_file_belong_to_its_names(tmp_path):
    text = "batch_size,loss_nats,arm\n1,3,=x\n1,4,'=x\n"
    assert columns.read(written(tmp_path / "runs.csv", text), "").arms == ("=x", "'=x")
