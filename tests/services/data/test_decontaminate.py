"""The decontaminate step: both sides of each rule, sets in every format, and the same drops however the records lie in shards."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet
import pytest
from services.data.set_runner import SetRunner, make_record

from llamero.data.content import hash_prompt
from llamero.data.errors import DataError
from llamero.data.selection import is_held_out
from llamero.data.steps import decontaminate
from llamero.spec.steps import DecontaminateStep

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnrst"]


def write_text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def run(tmp_path, records, shards=1, order="given", doubled=False, fraction=0.0, **options):
    step = decontaminate.build(DecontaminateStep.model_validate(options))
    return SetRunner(tmp_path, order, doubled).run(step, records, shards, evaluation_fraction=fraction)


def against(tmp_path, *rows, name="set.jsonl", **more):
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {"against": [{"uri": str(path), **more}]}


@pytest.mark.parametrize("field", ["prompt", "answer", "input", "later turn"])
@pytest.mark.parametrize(("shared", "is_dropped"), [(11, False), (12, True)])
def test_twelve_words_in_a_row_are_an_overlap_in_any_text_of_a_record(tmp_path, field, shared, is_dropped):
    passage = write_text(0, 40)
    taken = " ".join(["Look:", *passage.upper().split()[10 : 10 + shared], "indeed"])
    record = {
        "prompt": make_record(0, taken, "x"),
        "answer": make_record(0, "y", taken),
        "input": make_record(0, "y", "x", input=taken),
        "later turn": make_record(0, "y", "x", turns=("and", taken)),
    }[field]
    found = run(tmp_path, [record, make_record(1, "else", "other")], 2, **against(tmp_path, {"q": passage}))
    assert found.dropped_lines == ({1: "ngram in set.jsonl"} if is_dropped else {})
    for drop in found.drops.values():
        assert (drop.value, drop.threshold, drop.other) == (12.0, 12.0, None)


def test_an_overlap_never_runs_from_the_prompt_into_the_answer(tmp_path):
    words = write_text(0, 16).split()
    record = make_record(0, f"{write_text(1, 9)} {' '.join(words[:8])}", f"{' '.join(words[8:])} {write_text(2, 9)}")
    assert not run(
        tmp_path, [record], **against(tmp_path, {"q": " ".join(words)}, columns=["q"], name="one.jsonl")
    ).drops


def test_the_longest_run_of_words_is_told(tmp_path):
    words = write_text(0, 60).split()
    answer = " ".join([*words[:13], "between", *words[20:40], "end"])
    (drop,) = run(tmp_path, [make_record(0, "p", answer)], **against(tmp_path, {"q": " ".join(words)})).drops.values()
    assert drop.value == 20.0


@pytest.mark.parametrize(("words", "is_dropped"), [(4, False), (5, True), (11, True)])
def test_a_short_prompt_overlaps_where_it_equals_a_text_of_a_set(tmp_path, words, is_dropped):
    question = write_text(1, words)
    records = [
        make_record(0, f"{question}?", "x"),
        make_record(1, f"{question} or", "x"),
        make_record(2, "y", question),
    ]
    found = run(tmp_path, records, **against(tmp_path, {"turns": [question, "else"]}))
    assert found.dropped_lines == ({1: "minWords in set.jsonl"} if is_dropped else {})
    for drop in found.drops.values():
        assert (drop.value, drop.threshold) == (words, 5.0)


@pytest.mark.parametrize(("copies", "is_dropped"), [(10, True), (11, False)])
def test_what_stands_in_many_evaluation_records_is_boilerplate(tmp_path, copies, is_dropped):
    template, short = write_text(2, 14), write_text(3, 6)
    rows = [{"q": f"{template} {write_text(100 + i, 20)}", "a": short} for i in range(copies)]
    records = [make_record(0, f"{template} {write_text(4, 20)}", "x"), make_record(1, short, "y")]
    found = run(tmp_path, records, **against(tmp_path, *rows))
    assert found.dropped_lines == ({1: "ngram in set.jsonl", 2: "minWords in set.jsonl"} if is_dropped else {})


def test_a_template_twice_in_one_record_counts_once(tmp_path):
    template = write_text(2, 14)
    rows = [{"q": template, "a": f"{template} again"} for _ in range(10)]
    assert run(tmp_path, [make_record(0, template, "x")], **against(tmp_path, *rows)).drops


@pytest.mark.parametrize(("edited", "is_dropped"), [(1, True), (2, False)])
def test_very_alike_records_are_dropped_though_each_run_of_words_is_boilerplate(tmp_path, edited, is_dropped):
    # Each edit at an end costs one shingle on either side: 12 shingles; 11/13 = 0.85; 10/14 = 0.71.
    words = write_text(5, 24).split()
    rows = [{"q": " ".join(words)}] + [{"q": " ".join([*words[:-1], f"end{i}"])} for i in range(12)]
    text = [*words]
    text[0] = "changed"
    if edited == 2:
        text[-1] = "changed"
    record = make_record(0, " ".join(text[:1]), " ".join(text[1:]))
    options = {"ngram": 64, "boilerplate": 1, "minWords": 5}
    found = run(tmp_path, [record], **options, **against(tmp_path, *rows))
    assert found.dropped_lines == ({1: "maxJaccard in set.jsonl"} if is_dropped else {})
    for drop in found.drops.values():
        assert drop.value == pytest.approx(11 / 13) and drop.threshold == 0.8


def test_numbers_count_and_worked_sums_are_no_sentences(tmp_path):
    question = "Tom has 3 apples and buys 4 more how many apples has he now"
    rows = [{"q": question, "a": "3 + 4 = <<3+4=7>>7 and that is the answer"}]
    records = [
        make_record(0, question.replace("3", "30"), "34"),
        make_record(1, "Another sum", "So 3 + 4 = <<3+4=7>>7 or not"),
        make_record(2, question.replace("buys", "buys,").upper(), "7"),
    ]
    assert run(tmp_path, records, **against(tmp_path, *rows)).dropped_lines == {3: "ngram in set.jsonl"}


def held_out(record) -> bool:
    return is_held_out(int.from_bytes(hash_prompt(record.messages, record.input), "big"), 0, 0.3)


def test_training_records_that_overlap_the_held_out_split_go_and_name_the_record(tmp_path):
    records = [make_record(i, f"Question {i}", write_text(i % 20, 30)) for i in range(200)]
    found = run(tmp_path, records, 5, fraction=0.3)
    passages = {r.answer for r in records if held_out(r)}
    copies = {p: sum(held_out(r) for r in records if r.answer == p) for p in passages}
    expected = {r.line for r in records if not held_out(r) and 0 < copies.get(r.answer, 0) <= 10}
    assert set(found.dropped_lines) == expected and len(expected) > 50
    assert set(found.dropped_lines.values()) == {"ngram"}
    for place, drop in found.drops.items():
        other = records[drop.other[0] * 40 + drop.other[1]]
        assert held_out(other) and other.answer == records[place[0] * 40 + place[1]].answer


def test_common_short_prompts_and_answers_are_no_overlap_with_the_held_out_split(tmp_path):
    prompts = ["Continue the daily dialogue.", "Summarise the text please now", "How do you do today my friend"]
    records = []
    for i in range(300):
        text = f"{prompts[i % 3]}{'!' * (i % 7)}"  # another form is another side of the split
        records.append(make_record(i, text, f"{write_text(i, 8)} yes"))
    assert {held_out(r) for r in records} == {True, False}
    assert not run(tmp_path, records, 3, fraction=0.3).drops


def test_a_short_record_that_equals_a_held_out_one_as_a_whole_goes(tmp_path):
    records = [make_record(i, f"How are you{'!' * i}", "I am fine.") for i in range(40)]
    found = run(tmp_path, records, 2, fraction=0.3)
    training = {r.line for r in records if not held_out(r)}
    assert 0 < len(training) < 40
    assert found.dropped_lines == dict.fromkeys(training, "maxJaccard")


def make_set(folder, kind, passages):
    rows = [{"id": i, "nested": {"text": p}} for i, p in enumerate(passages)]
    match kind:
        case "jsonl":
            (folder / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
        case "json":
            (folder / "set.json").write_text(json.dumps(rows, indent=1))
        case "csv":
            (folder / "set.csv").write_text("id,text\n" + "".join(f'{i},"{p}"\n' for i, p in enumerate(passages)))
        case "parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "set.parquet")
        case "txt":
            (folder / "set.txt").write_text("\n".join(passages))
        case "jsonl.gz":
            (folder / "set.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return folder / f"set.{kind}"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "txt", "jsonl.gz"])
def test_sets_are_read_in_every_format(tmp_path, kind):
    passages = [write_text(i, 20) for i in range(5)]
    path = make_set(tmp_path, kind, passages)
    records = [make_record(i, "p", write_text(i, 20)) for i in range(8)]
    found = run(tmp_path / "run", records, 2, against=[{"uri": str(path)}])
    assert found.dropped_lines == {i + 1: f"ngram in set.{kind}" for i in range(5)}


def test_a_folder_of_sets_counts_each_file(tmp_path):
    (tmp_path / "sets").mkdir()
    for i in range(3):
        (tmp_path / "sets" / f"part-{i}.txt").write_text(write_text(i, 20))
    records = [make_record(i, "p", write_text(i, 20)) for i in range(4)]
    found = run(tmp_path / "run", records, against=[{"uri": str(tmp_path / "sets")}])
    assert found.dropped_lines == {i + 1: f"ngram in part-{i}.txt" for i in range(3)}


def test_columns_choose_what_counts(tmp_path):
    row = {"question": write_text(0, 20), "meta": {"source": write_text(1, 20)}}
    records = [make_record(0, "p", write_text(0, 20)), make_record(1, "p", write_text(1, 20))]
    assert len(run(tmp_path / "a", records, **against(tmp_path, row)).drops) == 2
    chosen = against(tmp_path, row, columns=["meta.source"])
    assert run(tmp_path / "b", records, **chosen).dropped_lines == {2: "ngram in set.jsonl"}


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ('{"q": "a"}\n{"q": broken}\n', [], "Row 2 of the evaluation set set.jsonl"),
        ('{"q": "a"}\n', ["question"], "The column `question` is missing"),
        ("", [], "set.jsonl holds no text"),
        ('{"q": 5}\n', [], "set.jsonl holds no text"),
    ],
)
def test_a_set_that_cannot_be_read_whole_ends_the_step_with_a_sentence(tmp_path, content, columns, message):
    path = tmp_path / "set.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        run(tmp_path, [make_record(0, "p", "a")], against=[{"uri": str(path), "columns": columns}])


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl can't be read"):
        run(tmp_path, [make_record(0, "p", "a")], against=[{"uri": str(tmp_path / "missing.jsonl")}])


def test_short_prompts_must_be_shorter_than_the_n_gram():
    with pytest.raises(DataError, match="`minWords` is greater"):
        decontaminate.build(DecontaminateStep(ngram=4, min_words=5))


def test_no_held_out_split_and_no_set_is_nothing_to_do(tmp_path):
    assert run(tmp_path, [make_record(0, "p", "a")]).uris == []


def test_no_layout_order_or_doubled_task_changes_what_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(decontaminate, "PARTITION_HASHES", 300)
    monkeypatch.setattr(decontaminate, "_BATCH_RECORDS", 30)
    rng = random.Random(0)
    passages = [write_text(rng.randrange(40), 25) for _ in range(200)]
    records = [make_record(i, f"Say {i}", p) for i, p in enumerate(passages)]
    options = against(tmp_path, *({"q": write_text(i, 25)} for i in range(20, 45)))
    whole = run(tmp_path / "1", records, 1, fraction=0.1, **options)
    assert {"ngram", "ngram in set.jsonl"} <= set(whole.dropped_lines.values()) and len(whole.rounds[1][1]) > 2
    for shards, order in ((3, "reversed"), (12, "shuffled")):
        cut = run(tmp_path / f"{shards}", records, shards, order, True, 0.1, **options)
        assert cut.dropped_lines == whole.dropped_lines


def test_only_records_of_the_named_sources_are_dropped_but_all_held_out_ones_count(tmp_path):
    records = [make_record(i, f"Question {i}", write_text(i % 10, 30), source="ab"[i % 2]) for i in range(80)]
    step = decontaminate.build(DecontaminateStep())
    found = SetRunner(tmp_path).run(step, records, 4, evaluation_fraction=0.3, sources=["b"])
    assert found.dropped and {r.source for r, _ in found.dropped} == {"b"}
