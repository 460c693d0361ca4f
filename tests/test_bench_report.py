"""The report's figures in every form: JSON by its schema, the tables, what is noted beside a row."""

import io
import json
import math
import re
import subprocess
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from fastgraph.bench import machine as machines
from fastgraph.bench import text
from fastgraph.bench.ceilings.limit import Limit
from fastgraph.bench.ceilings.roofline import GPUS, floors
from fastgraph.bench.plan import Plan
from fastgraph.bench.report.cells import Cell, caption, cells, columns, note
from fastgraph.bench.report.device_comparison import device_comparison
from fastgraph.bench.report.markdown import markdown
from fastgraph.bench.report.report import Report, ReportError
from fastgraph.bench.report.summary import glance, remarks, standing, summaries, verdict
from fastgraph.bench.report.terminal import WIDE, modelled_table, summary_table, table
from fastgraph.bench.timing import Usage
from tests.bench_samples import FAST, build_small, case_report, report

RATIO = "2.50 (2.45-2.56)"
SCHEMA = json.loads(files("fastgraph.bench.report").joinpath("report.schema.json").read_text())


def full() -> Report:
    """A report with modelled floors."""
    modelled = tuple(asdict(one) for one in floors("small, batch 4", build_small(4), "H100", "fp32"))
    return replace(report(), modelled=modelled)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_json_follows_its_schema() -> None:
    content = json.loads(full().to_json(), parse_constant=refuse)
    jsonschema.validate(content, SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert [case["batch"] for case in content["cases"]] == [1, 16, 128]
    assert content["cases"][0]["rows"][1]["max_error"] is None  # NaN


def test_a_report_from_before_the_share_in_fused_kernels_is_read() -> None:
    content = json.loads(report().to_json())
    for case in content["cases"]:
        for row in case["rows"]:
            del row["fused"]
    jsonschema.validate(content, SCHEMA)
    assert {row.fused for case in Report.from_json(json.dumps(content)).cases for row in case.rows} == {None}


@pytest.mark.parametrize("spoil", ["machine", "cases", "complete"])
def test_the_schema_misses_what_is_left_out(spoil: str) -> None:
    content = json.loads(full().to_json())
    del content[spoil]
    with pytest.raises(jsonschema.ValidationError, match=f"'{spoil}' is a required property"):
        jsonschema.validate(content, SCHEMA)


def test_the_schema_knows_every_field() -> None:
    content = json.loads(full().to_json())
    content["cases"][0]["rows"][0]["timing"]["new"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


def test_the_machine_fits_the_schema() -> None:
    jsonschema.validate(json.loads(replace(report(), machine=machines.machine()).to_json()), SCHEMA)


def test_reading_gives_back_what_was_written() -> None:
    first = full().to_json()
    assert Report.from_json(first).to_json() == first
    assert Report.from_json(first).cases[1].setting == full().cases[1].setting


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "it is no report of python -m bench"),
        ("[1]", "it is no report of python -m bench"),
        ("{}", "it is no report of python -m bench"),
        ('{"schema_version": 7}', "its schema version is 7; this bench reads version 3"),
        ('{"schema_version": 3}', "it is no complete report: 'cases'"),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ReportError) as raised:
        Report.load(path)
    assert str(raised.value) == f"{path}: {message}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read: No such file"):
        Report.load(tmp_path / "none.json")


def test_tidy_table_has_one_flat_row_a_case_and_backend() -> None:
    rows = report().rows()
    assert len(rows) == 3 * 5
    assert all(row.keys() == rows[0].keys() for row in rows)
    ours = rows[4]
    assert (ours["model"], ours["batch"], ours["backend"], ours["threads"]) == ("DeepLearningModel", 1, "fastgraph", 2)
    assert (ours["median_s"], ours["binding"], ours["share_of_ceiling"]) == (pytest.approx(2.125e-5), "memory", 0.7)
    assert rows[1]["median_s"] is None
    assert not any(isinstance(value, (dict, list, tuple)) for row in rows for value in row.values())


def shown(width: int = 120) -> list[str]:
    """The lines of a case's table as the bench prints them."""
    console = Console(width=width, markup=False, record=True, file=io.StringIO())
    console.print(table(case_report(), width))
    return console.export_text().splitlines()


def row_of(backend: str) -> list[str]:
    """The cells of a backend's row."""
    (line,) = [line for line in shown() if line.startswith(f"  {backend} ")]
    return re.split(r"\s{2,}", line.strip())


def test_table_lists_every_backend_with_speed_or_reason() -> None:
    lines = shown()
    assert lines[0].startswith(
        "DeepLearningModel, batch 16: fp32, cpu, 2 threads, input [16, 784]; error allowed 3.0e-07"
    )
    speed = ("20.0 µs", "-", "800,000", RATIO, RATIO, "70% L3", "97%", "9.0e-08")
    assert row_of("fastgraph") == ["fastgraph", *speed]
    assert row_of("onnxruntime") == ["onnxruntime", *["-"] * 7, "nan"]
    notes = {line.strip() for line in lines if line.startswith(("fastgraph:", "onnxruntime:", "openvino:"))}
    assert notes == {
        "onnxruntime: CPU; wrong: its error is large",
        "fastgraph: cpu, mlp (avx2)",
        "openvino: failed: ImportError: [no] such <thing> | here",
    }


def plans() -> list[Plan]:
    """One of each kind of run."""
    return [FAST, replace(FAST, pause_s=1e-4), replace(FAST, processes=2), replace(FAST, rate_per_s=2e3, mode="server")]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("plan", plans(), ids=str)
def test_what_counts_in_a_mode_is_shown_at_every_width(plan: Plan, width: int) -> None:
    shown = columns(plan, width >= WIDE)
    assert {"median", "x peer"} < set(shown)
    assert ("samples/s" in shown) is (plan.tight or (plan.processes > 1 and width >= WIDE))
    assert ("calls/s" in shown) is (plan.processes > 1)
    assert ("cpu a call" in shown) is ("p99" in shown and plan.processes == 1 and not plan.tight)
    console = Console(width=width, markup=False, record=True, file=io.StringIO())
    console.print(table(case_report(), width, plan))
    said = console.export_text()
    assert all(name in said for name in shown)
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert sum("20.0 µs" in line for line in lines) == 1


def test_summary_has_the_best_peer_and_what_we_lose() -> None:
    won, lost = summaries([case_report(1, 2e-5), case_report(16, 8e-5)])
    figures = (RATIO, "20.0 µs", "eager", "50.0 µs", "50,000", RATIO, "70% L3", "97%")
    assert won.cells() == ("DeepLearningModel, batch 1", *figures)
    assert lost.ratio is not None
    assert lost.ratio.value == pytest.approx(0.625)
    level = summaries([case_report(1, 5e-5)])
    assert verdict(level).endswith("in 0 of 1 cases; level, by the interval, in DeepLearningModel, batch 1 (1.00).")
    assert verdict([won]) == "fastgraph is ahead of the best peer in 1 of 1 cases."
    assert verdict([won, lost]).endswith("in 1 of 2 cases; behind in DeepLearningModel, batch 16 (0.62).")
    written = markdown(report(case_report(1, 2e-5), case_report(16, 8e-5)))
    assert verdict([won, lost]) in written
    assert standing([won, lost]) in written
    assert standing([won, lost]) == (
        "Geometric mean of x peer over 2 cases 1.25; below eager in 1 of 2: DeepLearningModel, batch 16 (0.62)."
    )
    assert standing([won]) == ""
    assert standing([won, won]) == "Geometric mean of x peer over 2 cases 2.50; below eager in 0 of 2."
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table([won, lost], 80))
    assert "…" not in console.export_text()


def test_ratios_to_an_eager_that_pays_page_faults_are_marked() -> None:
    faulty = Usage(cpu_s=5e-5, kernel=0.4, page_faults=5400)
    (marked,) = summaries([case_report(1, usage=faulty)])
    assert marked.cells()[6] == f"{RATIO}*"
    assert any(one.startswith("* eager takes new memory") for one in remarks([marked]))
    said = note(case_report(1, usage=faulty).rows[0])
    assert said == "cpu; 5,400 page faults a call, 40% of its processor time in the kernel"
    for harmless in (replace(faulty, kernel=0.05), replace(faulty, page_faults=3.0)):
        (plain,) = summaries([case_report(1, usage=harmless)])
        assert plain.cells()[6] == RATIO
        assert not any("*" in one for one in remarks([plain]))


def test_the_level_that_binds_is_named() -> None:
    assert str(Limit("memory", "L2", 1e-6, 0.49)) == "49% L2"
    assert str(Limit("memory", "memory", 1e-6, 0.5)) == "50% memory"
    assert str(Limit("compute", "L2", 1e-6, 0.96)) == "96% compute"


def test_columns_without_a_figure_are_left_out_at_a_glance() -> None:
    made = case_report(1)
    rows = tuple(replace(row, samples_per_s=None, limit=None) for row in made.rows)
    head, (line,) = glance(summaries([replace(made, rows=rows)]))
    assert head == ["case", "x peer", "fastgraph", "best peer", "its median", "x eager", "fused"]
    assert len(line) == len(head)


def test_several_processes_are_shown_by_their_calls_a_second() -> None:
    made = case_report(1)
    rows = tuple(
        replace(row, timing=replace(row.timing, round_calls_per_s=(1e3 * i,) * 9)) if row.timing else row
        for i, row in enumerate(made.rows, 1)
    )
    (found,) = summaries([replace(made, rows=rows)])
    assert found.cells()[2:5] == ("5,000/s", "torch.compile", "4,000/s")  # by calls a second, not by the median
    both = replace(report(replace(made, rows=rows)), plan=replace(FAST, processes=2))
    assert "| fastgraph | 20.0 µs | - | 5,000 |" in markdown(both)
    assert "2 processes at once on the same cores: `python -m bench" in markdown(both)


def test_what_is_not_installed_is_said_once() -> None:
    said = markdown(replace(report(), absent=("OpenVINO needs openvino: pip install it",)))
    assert said.count("Not measured: OpenVINO needs openvino: pip install it.") == 1


def test_how_long_it_rested_is_noted() -> None:
    rested = note(case_report(1, usage=Usage(1e-4, 0.0, 0.0, 1.2e-4)).rows[0])
    assert rested == "cpu; 120.0 µs between calls"


def test_summary_names_the_setting_where_there_are_several() -> None:
    first, second = summaries([case_report(1), case_report(1, device="cuda")])
    assert first.label == "DeepLearningModel, batch 1, fp32, cpu, 2 threads"
    assert "cuda" in second.label


def test_a_cell_has_its_text_and_what_it_is_sorted_by() -> None:
    rows = {row.backend: cells(row) for row in case_report().rows}
    ours, wrong = rows["fastgraph"], rows["onnxruntime"]
    assert ours["median"] == Cell("20.0 µs", 2e-5)
    assert ours["x peer"] == Cell(RATIO, pytest.approx(2.5))
    assert ours["of limit"] == Cell("70% L3", 0.7)
    assert ours["calls"] == Cell("1,234", 1234)
    assert ours["accuracy"] == Cell("98.59%", 0.9859)
    assert (ours["prepare"].text, ours["memory"].text) == ("200.0 ms", "24 MB")
    assert {name for name, cell in wrong.items() if cell != Cell("-")} == {"max error", "prepare", "first call"}
    assert ours.keys() == wrong.keys()


def test_doubtful_rows_are_noted() -> None:
    noisy = case_report().rows[3]
    assert note(noisy) == "cpu, inductor; not stable after warm-up; IQR is 30% of the median"


def test_caption_tells_the_work_and_the_ceilings() -> None:
    said = caption(case_report(1))
    assert said.startswith("a call: 1.07 MFLOP, 2.14 MB at least; ceilings: fma 90 GFLOP/s, L2 80 GB/s")
    assert said.endswith("memory 9 GB/s, launch 1.0 µs")
    busy = caption(replace(case_report(1), others=0.41))
    assert busy.endswith("; doubtful: other processes took 41% of the processors")


def test_markdown_has_every_row_and_escapes_bars() -> None:
    said = markdown(full())
    assert said.count("\n| fastgraph | ") == 3
    assert "such <thing> \\| here" in said
    assert "## Model of H100 SXM: not measured" in said
    assert f"Peaks: {GPUS['H100'].source}." in said
    assert "stopped" not in said
    assert "**The run was stopped before its end.**" in markdown(replace(full(), complete=False))


def test_cpu_and_cuda_stand_side_by_side() -> None:
    both = [case_report(16, 2e-5), case_report(16, 1e-4, device="cuda")]
    lines = device_comparison(both)
    assert [(line.setting.split(", ")[1], *line[2:]) for line in lines] == [
        ("cpu", "fastgraph", "20.0 µs", "800,000"),
        ("cuda", "fastgraph", "100.0 µs", "160,000"),
        ("cuda", "eager", "50.0 µs", "320,000"),  # the fastest there
    ]
    assert device_comparison(both[:1]) == []
    assert "## CPU and CUDA side by side" in markdown(report(*both))


def test_modelled_floors_are_marked_as_such() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(modelled_table(full().modelled))
    said = console.export_text()
    assert "model of H100 SXM, not measured" in said
    assert f"peaks: {GPUS['H100'].source}" in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (2.5e-6, "2.5 µs"), (0.0123, "12.3 ms"), (1.5, "1.50 s"), (0.0, "0.0 µs")]
)
def test_durations_are_in_the_unit_that_fits(seconds: float | None, said: str) -> None:
    assert text.duration(seconds) == said


def test_sizes_and_rates_are_in_the_unit_that_fits() -> None:
    assert [text.size(n) for n in (None, 12, 999.4, 2_140_000, 3e9)] == ["-", "12 B", "999 B", "2.14 MB", "3 GB"]
    assert [text.rate(n) for n in (7, 1500, 4.56e11, 2e12)] == ["7", "1.5 k", "456 G", "2 T"]
    assert text.finite({"a": [1.0, math.nan], "b": (math.inf,)}) == {"a": [1.0, None], "b": [None]}


def test_machine_lines_tell_what_the_figures_depend_on() -> None:
    first, second, third = machines.machine_lines(report().machine)
    assert first == "Some <CPU>, 2 cores, avx2 kernels"
    assert second == "python 3.11.7, torch 2.14.1; commit abc1234"
    assert third == "GPU: no CUDA device here, so there is no comparison of CPU and CUDA"
    assert machines.machine_lines(report().machine | {"gpu": "H200"})[2] == "GPU: H200"


def test_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert machines._commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert commit.startswith(machines._commit(tmp_path) or "nothing")
    (tmp_path / "site-packages").mkdir()
    assert machines._commit(tmp_path / "site-packages") is None  # somebody else's checkout
