"""`llamero data`: prepared, counted, explained and compared from the command line, on real files."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from llamero.cli.main import cli
from llamero.data.comparing import Entry, compare
from llamero.spec.results import DataResult


def row(number: int, answer: str = "") -> dict[str, Any]:
    text = (
        answer or f"It is {number + 1}, since one more than {number} is {number + 1}, as the numbers go and have gone."
    )
    return {"instruction": f"What do you get if you add one to the number {number}?", "output": text}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["data", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


# -- prepare -----------------------------------------------------------------------------------------------------------------------


def test_a_file_is_prepared_without_a_base_and_the_funnel_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*(row(i) for i in range(40)), row(3), {"instruction": "Why?"}])
    result = run("prepare", file, "-o", tmp_path / "out", "--recipe", "none")
    assert "a.jsonl is read as format alpaca, since its rows have `instruction` and `output`." in result.output
    assert "equal 1" in result.output and "malformed 1" in result.output
    assert "95.2% of 42" in result.output
    told = DataResult.model_validate_json((tmp_path / "out" / "manifest.json").read_bytes())
    assert (told.read, told.kept, told.unit) == (42, 40, "words")
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 2


def test_the_same_prepared_again_is_found_and_other_steps_reuse_what_they_can(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(40)])
    first = run_json("prepare", file, "-o", tmp_path / "out")
    assert run_json("prepare", file, "-o", tmp_path / "out") == first
    steps = tmp_path / "steps.yaml"
    steps.write_text("- length: {field: answer, unit: words, min: 3}\n- random: {records: 10}\n")
    other = run_json("prepare", file, "-o", tmp_path / "out", "--steps", steps)
    assert other["train"]["records"] == 10
    assert [s["kind"] for s in other["funnel"] if s.get("number")] == ["length", "random"]


def test_with_a_base_there_are_tokens(tmp_path: Path, random_base: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(20)])
    result = run_json("prepare", file, "-o", tmp_path / "out", "--base", random_base, "--sequence-length", 512)
    assert result["unit"] == "tokens" and result["train"]["tokens"] > 0
    assert (tmp_path / "out" / "tokens" / "train").is_dir()


def test_a_manifest_is_prepared_without_its_job(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", [row(i) for i in range(30)])
    manifest = tmp_path / "job.yaml"
    manifest.write_text(
        "apiVersion: llamero.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: small}\nspec:\n  baseModel: {uri: nowhere}\n"
        "  data:\n    sources: [{uri: data/a.jsonl, format: alpaca}]\n    steps: []\n  rollout: {engine: cpu}\n"
    )
    assert run_json("prepare", manifest, "-o", tmp_path / "out", "--words")["kept"] == 30
    told = run("prepare", manifest, "-o", tmp_path / "other", code=2)
    assert "nowhere" in told.output and "--words" in told.output


def test_several_files_archives_and_columns_are_sources(tmp_path: Path) -> None:
    inner = write(tmp_path / "b.jsonl", [row(i) for i in range(10, 20)])
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as archive:
        archive.add(inner, "deep/b.jsonl")
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(10)])
    result = run_json("prepare", file, tmp_path / "b.tgz", "-o", tmp_path / "out", "--recipe", "none")
    assert [(s["name"], s["kept"]) for s in result["sources"]] == [("a", 10), ("b", 10)]
    odd = write(tmp_path / "odd.jsonl", [{"q": f"Why {i}?", "deep": {"a": f"Because of {i}."}} for i in range(5)])
    assert "give --format, or --columns" in run("prepare", odd, "-o", tmp_path / "x", code=3).output
    columns = "instruction=q,output=deep.a"
    assert run_json("prepare", odd, "-o", tmp_path / "o", "--columns", columns, "--recipe", "none")["kept"] == 5
    assert "is no FIELD=COLUMN" in run("prepare", odd, "-o", tmp_path / "p", "--columns", "q", code=2).output


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("- quality: {}\n  length: {min: 3}\n", r"data.steps[0]: a step has exactly one kind"),
        ("- use: instrucion\n", "did you mean `instruction`"),
        ("- use: alpagasus\n", "name at least one in `models`"),
        ("- threshold: {score: judge, min: 3}\n", "which no earlier step makes"),
        ("- quality: {}\n  sources: [nobody]\n", "`nobody` names no source"),
        ("- quality: {minWord: 3}\n", "minWord"),
        ("just words", "holds no list of steps"),
        ("- [", "is no YAML"),
    ],
)
def test_wrong_steps_are_told_where_they_stand_and_nothing_is_started(tmp_path: Path, steps: str, message: str) -> None:
    file = write(tmp_path / "a.jsonl", [row(1)])
    (tmp_path / "steps.yaml").write_text(steps)
    told = run("prepare", file, "-o", tmp_path / "out", "--steps", tmp_path / "steps.yaml", code=2)
    assert message in told.output
    assert not (tmp_path / "out").exists()


def test_the_files_that_steps_name_lie_beside_the_steps(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", [*(row(i) for i in range(20)), row(77, "Something about forbidden fruit, and the like.")]
    )
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "words.txt").write_text("# a comment\nforbidden fruit\n")
    (tmp_path / "deep" / "steps.yaml").write_text("- content: {wordsUri: words.txt}\n")
    result = run_json("prepare", file, "-o", tmp_path / "out", "--steps", tmp_path / "deep" / "steps.yaml")
    assert (result["kept"], result["rejected"]) == (20, {"content": 1})


def test_an_output_folder_with_other_files_or_within_the_data_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "data" / "a.jsonl", [row(i) for i in range(5)])
    write(tmp_path / "mine" / "train" / "precious.jsonl", [row(1)])
    assert "holds other files" in run("prepare", file, "-o", tmp_path / "mine", code=2).output
    assert (tmp_path / "mine" / "train" / "precious.jsonl").is_file()
    assert "which is read" in run("prepare", tmp_path / "data", "-o", tmp_path / "data" / "out", code=2).output
    assert "is a file" in run("prepare", file, "-o", file, code=2).output


def test_missing_and_useless_files_end_with_a_sentence(tmp_path: Path) -> None:
    assert "does not exist" in run("prepare", tmp_path / "none.jsonl", "-o", tmp_path / "o", code=3).output
    (tmp_path / "a.txt").write_text("just\nwords\n")
    assert "no format can be guessed" in run("stats", tmp_path / "a.txt", code=3).output
    told = run("stats", "http://127.0.0.1:9/a.jsonl", "--format", "alpaca", code=3).output
    assert "is not https" in told
    told = run("stats", "https://127.0.0.1:9/a.jsonl", code=3).output
    assert "this machine's own" in told


# -- formats -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", json.dumps([row(1), row(2)]), "format alpaca"),
        ("a.jsonl", '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n', "format sharegpt"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n', "format messages"),
        ("a.txt", "Hi . __eou__ Hello . __eou__\n", "format dialog"),
        ("a.xml", '<?xml version="1.0"?>\n<posts>\n<row Id="1" PostTypeId="1" Body="a" Title="b" Score="1" />\n</posts>\n', "format stackexchange"),
        ("a.csv", "question,context,answer\nWhy?,Here,Because\n", "`question` and `context` as the prompt and `answer` as the answer"),
        ("a.jsonl", '{"prompt": "a", "answers": ["b", "c"]}\n', "`prompt` as the prompt and `answers` as the answer"),
    ],
)  # fmt: skip
def test_formats_are_guessed_with_a_sentence(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    assert told in run("stats", tmp_path / name).output


# -- stats -------------------------------------------------------------------------------------------------------------------------


def test_lengths_are_counted_by_domain_in_words(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four five"}]}]
    rows += [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * (i + 1)}]}
        for i in range(4)
    ]
    rows += [{"messages": []}]
    counted = run_json("stats", write(tmp_path / "a.jsonl", rows))
    overall = counted["statistics"][-1]
    assert (counted["read"], counted["unit"], overall["samples"]) == (6, "words", 6)
    assert overall["input"] == {"mean": 1.4, "median": 1.0, "max": 3}
    assert overall["output"] == {"mean": 2.4, "median": 2.0, "max": 4}
    assert sum(counted["rejected"].values()) == 1
    assert [h["name"] for h in counted["histograms"]] == ["input", "output", "total"]
    assert all(sum(h["counts"]) == 5 for h in counted["histograms"])


def test_domains_and_tokens_are_counted_where_they_are_asked_for(tmp_path: Path, random_base: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": "yes indeed", "tags": ["R"] if i % 3 else ["cooking"]} for i in range(9)]
    (tmp_path / "domains.yaml").write_text("statistics: [r, regression]\nfood: [cooking]\n")
    file = write(tmp_path / "a.jsonl", rows)
    counted = run_json("stats", file, "--domains", tmp_path / "domains.yaml", "--base", random_base)
    assert {s["domain"]: s["samples"] for s in counted["statistics"]} == {
        "statistics": 6,
        "food": 3,
        "other": 0,
        "overall": 9,
    }
    assert counted["unit"] == "tokens" and counted["recommendedSequenceLength"] == 128
    assert "Sequence length that cuts at most 1%: 128" in run("stats", file, "--base", random_base).output


def test_prepared_data_can_be_counted(tmp_path: Path) -> None:
    run("prepare", write(tmp_path / "a.jsonl", [row(i) for i in range(30)]), "-o", tmp_path / "out", "--recipe", "none")
    assert run_json("stats", tmp_path / "out")["read"] == 30


def test_counting_starts_no_worker_and_loads_no_heavy_library(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(30)])
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom llamero.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['data', 'stats', sys.argv[1]])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'pyarrow', 'pandas', 'aiohttp', 'lxml', 'kubernetes', 'celery'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- explain -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    rows = [*(row(i) for i in range(30)), row(4), row(99, "No."), {"instruction": "Why?"}]
    (folder / "steps.yaml").write_text("- length: {field: answer, unit: words, min: 3}\n")
    file = write(folder / "a.jsonl", rows)
    run("prepare", file, "-o", folder / "out", "--steps", folder / "steps.yaml")
    return folder / "out"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("a:1", "kept"),
        ("a.jsonl:31", "same as     record 5 of a.jsonl (source a)"),
        ("a:32", "step 1, length (spec.data.steps[0])"),
        ("a:32", "min, found 1, wanted 3"),
        ("a:33", "rejected: malformed"),
    ],
)
def test_a_records_story_is_told(prepared: Path, record: str, told: str) -> None:
    assert told in run("explain", prepared, "--record", record).output


def test_a_record_is_found_by_the_beginning_of_its_id(prepared: Path) -> None:
    first = json.loads(next((prepared / "train").iterdir()).read_text().splitlines()[0])
    told = run_json("explain", prepared, "--record", first["id"][:8])
    assert [(f["id"], f["outcome"], f["line"]) for f in told["found"]] == [(first["id"], "kept", first["line"])]


def test_a_record_that_is_not_there_and_a_run_that_is_not_there_are_told(prepared: Path, tmp_path: Path) -> None:
    assert "has no record at line 77" in run("explain", prepared, "--record", "a:77", code=3).output
    assert "names no record" in run("explain", prepared, "--record", "?", code=3).output
    told = run("explain", "nojob", "--record", "a:1", "--workdir", tmp_path, code=2).output
    assert "neither a folder of prepared data, nor a run's, nor a job" in told


def test_a_jobs_newest_run_is_found_by_the_jobs_name(prepared: Path, tmp_path: Path) -> None:
    from llamero.spec.names import RunLayout

    for number in (1, 2):
        data = RunLayout(tmp_path, "small", number).data
        data.parent.mkdir(parents=True)
        data.symlink_to(prepared)
    newest = RunLayout(tmp_path, "small", 2).data.parent
    for name in ("small", str(newest), str(newest / "data")):
        assert "kept" in run("explain", name, "--record", "a:1", "--workdir", tmp_path).output
    assert "kept" in run("explain", "small", "--run", 1, "--record", "a:1", "--workdir", tmp_path).output
    run("explain", "small", "--run", 7, "--record", "a:1", "--workdir", tmp_path, code=2)


def test_a_records_text_can_not_write_to_the_terminal(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(1, "A \x1b[2J long \x07 answer of words."), row(2)])
    run("prepare", file, "-o", tmp_path / "out", "--recipe", "none", "--evaluation-fraction", 0)
    told = run("explain", tmp_path / "out", "--record", "a:1").output
    assert "\x1b" not in told and "\x07" not in told and "[2J long" in told


# -- diff --------------------------------------------------------------------------------------------------------------------------


def test_two_versions_are_compared_with_examples(tmp_path: Path) -> None:
    old = [row(i) for i in range(10)]
    new = [*old[:6], row(6, "Quite another answer."), row(20), row(21), row(21), row(0)]
    a, b = write(tmp_path / "a.jsonl", old), write(tmp_path / "b.jsonl", new)
    found = run_json("diff", a, b)
    assert found["before"] == {"records": 10, "repeated": 0}
    assert found["after"] == {"records": 9, "repeated": 2}
    assert (found["same"], found["added"], found["removed"], found["changed"]) == (
        6,
        2,
        3,
        {"samePrompt": 1, "sameSourceId": 0},
    )
    assert [e["place"] for e in found["examples"]["added"]] == ["b.jsonl:8", "b.jsonl:9"]
    assert [e["place"] for e in found["examples"]["removed"]] == ["a.jsonl:8", "a.jsonl:9", "a.jsonl:10"]
    [changed] = found["examples"]["changed"]
    assert (changed["before"]["place"], changed["after"]["answer"]) == ("a.jsonl:7", "Quite another answer.")
    assert "~ a.jsonl:7 → b.jsonl:7" in run("diff", a, b).output
    assert run_json("diff", a, a)["same"] == 10


def test_case_blanks_and_marks_make_no_difference_and_ids_follow_a_record(tmp_path: Path) -> None:
    columns = "instruction=q,output=a,id=id"
    a = write(
        tmp_path / "a.jsonl", [{"q": "Why  so?", "a": "Because.", "id": 1}, {"q": "Where?", "a": "There.", "id": 2}]
    )
    b = write(
        tmp_path / "b.jsonl",
        [{"q": "why so?", "a": "**because**.", "id": 1}, {"q": "Where now?", "a": "There.", "id": 2}],
    )
    found = run_json("diff", a, b, "--columns", columns)
    assert (found["same"], found["changed"]) == (1, {"samePrompt": 0, "sameSourceId": 1})


def test_a_file_is_compared_with_what_was_prepared_of_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(30)])
    run("prepare", file, "-o", tmp_path / "one", "--recipe", "none")
    write(file, [row(i) for i in range(5, 33)])
    run("prepare", file, "-o", tmp_path / "two", "--recipe", "none")
    found = run_json("diff", tmp_path / "one", tmp_path / "two")
    assert (found["same"], found["added"], found["removed"]) == (25, 3, 5)
    assert run_json("diff", file, tmp_path / "two")["same"] == 28


def entries(pairs: list[tuple[int, int]]) -> Iterator[Entry]:
    for place, (prompt, answer) in enumerate(pairs):
        yield Entry(prompt * 1000 + answer + 1, prompt + 1, 0, str(place), f"p{prompt}", f"a{answer}")


pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40)


@given(pairs, pairs)
def test_counts_are_those_of_sets_whatever_the_order(old: list[tuple[int, int]], new: list[tuple[int, int]]) -> None:
    found = compare(lambda: entries(old), lambda: entries(new), 100, lambda rows: None)
    before, after = set(old), set(new)
    gone, come = Counter(p for p, _ in before - after), Counter(p for p, _ in after - before)
    changed = sum((gone & come).values())
    assert (found.before, found.after, found.same) == (len(before), len(after), len(before & after))
    assert found.changed_answer == changed == len(found.changed_examples)
    assert (found.removed, found.added) == (gone.total() - changed, come.total() - changed)
    assert (len(found.removed_examples), len(found.added_examples)) == (found.removed, found.added)
    assert (found.repeated_before, found.repeated_after) == (len(old) - len(before), len(new) - len(after))
    assert all(
        c.before.prompt == c.after.prompt and c.before.content != c.after.content for c in found.changed_examples
    )
