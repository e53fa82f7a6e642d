"""The whole data phase: counts that add up, sides that stay, bytes that do not hang on who did the work."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from llamero.data import coordinator as coordinator_module
from llamero.data import prepare as prepare_module
from llamero.data.prepare import DataError, plan_data, prepare_data
from llamero.model.tokens import TokenSet
from llamero.spec.records import RejectionReason

DIRTY = [
    ("What is LoRA?", "A low-rank update."),
    ("WHAT  is LoRA?", "A **low-rank** update."),
    ("No answer", ""),
    ("", "no question"),
    {"instruction": "no output"},
    "not an object",
    ("Too long", "word " * 800),
    ("With NULs\0", "a\0b\r\nc"),
    ("Marked up", "<p>x &lt;- 1 and <code>y</code></p>"),
    {"instruction": "Add", "input": "1 and 2", "output": "3"},
]


def alpaca(path: Path, **more) -> dict:
    return {"uri": str(path), "format": "alpaca", **more}


def check_sums(prepared) -> None:
    result = prepared.result
    rejected = prepared.rejected()
    assert result.read == result.kept + sum(result.rejected.values())
    assert result.kept == result.train.records + result.evaluation.records
    assert Counter(r["reason"] for r in rejected) == Counter(result.rejected)
    for name in ("read", "kept"):
        assert sum(getattr(s, name) for s in result.sources) == getattr(result, name)
    for source in result.sources:
        assert source.read == source.kept + sum(source.rejected.values())
    for side in ("train", "evaluation"):
        records, counts = prepared.records(side), getattr(result, side)
        parts = sorted((prepared.folder / "tokens" / side).glob("part-*"))
        tokens = TokenSet.open(parts)
        assert [tokens.record_id(i) for i in range(len(tokens))] == [r["id"] for r in records]
        assert (len(records), int(tokens.lengths.sum())) == (counts.examples, counts.tokens)
        assert tokens.target_tokens == counts.target_tokens
        assert len({r["id"].split("_")[0] for r in records}) == counts.records
    for stage, count in (("read", result.read), ("kept", result.kept)):
        rows = [r for r in result.statistics if r.stage == stage]
        assert rows[-1].domain == "overall"
        assert rows[-1].samples == count == sum(r.samples for r in rows[:-1])
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    on_disk = {str(p.relative_to(prepared.folder)) for p in prepared.folder.rglob("*") if p.is_file()}
    assert {f["name"] for f in manifest["files"]} == on_disk - {"manifest.json"}


def test_every_row_is_kept_or_rejected_with_its_place_and_reason(prepare, write_alpaca):
    prepared = prepare([alpaca(write_alpaca(DIRTY))], evaluation_fraction=0, max_rejected_fraction=0.5)
    check_sums(prepared)
    assert [(r["line"], r["reason"]) for r in prepared.rejected()] == [
        (2, "duplicate"),
        (3, "empty-answer"),
        (4, "empty-prompt"),
        (5, "malformed"),
        (6, "malformed"),
        (7, "too-long"),
    ]
    assert all(
        r["source"] == "alpaca" and r["file"] == "alpaca.json" and r["detail"] and r["text"]
        for r in prepared.rejected()
    )
    assert "record 1 of alpaca.json" in prepared.rejected()[0]["detail"]
    records = {r["line"]: r for r in prepared.records("train")}
    assert sorted(records) == [1, 8, 9, 10]
    assert records[8]["messages"][1]["content"] == "ab\nc"
    assert records[9]["messages"][1]["content"] == "x <- 1 and `y`"
    assert records[10]["messages"][0]["content"] == "Add"
    assert records[10]["meta"] == {"input": "1 and 2"}


def test_the_input_of_a_record_is_in_its_tokens(prepare, write_alpaca, random_base):
    from transformers import AutoTokenizer

    prepared = prepare([alpaca(write_alpaca(DIRTY[-1:]))], evaluation_fraction=0)
    ids, mask = TokenSet.open(prepared.folder / "tokens" / "train" / "part-00000")[0]
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    assert "1 and 2" in tokenizer.decode(ids.tolist())
    assert tokenizer.decode(ids[mask == 1].tolist()) == "3<|im_end|>"


def rows(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"Question number {i}?", f"Answer {i}, at some length.") for i in range(start, start + count)]


def test_records_keep_their_side_when_data_is_added_and_when_it_is_cut_otherwise(prepare, write_alpaca):
    small = prepare([alpaca(write_alpaca(rows(200)))], "small", evaluation_fraction=0.2)
    grown = prepare(
        [alpaca(write_alpaca(rows(100, 500) + rows(200), "b.json")), alpaca(write_alpaca(rows(50, 90), "a.json"))],
        "grown",
        evaluation_fraction=0.2,
        shard_records=17,
    )
    check_sums(small)
    check_sums(grown)
    for side in ("train", "evaluation"):
        assert {r["id"] for r in small.records(side)} <= {r["id"] for r in grown.records(side)}
    assert 20 < len(small.records("evaluation")) < 60
    assert grown.result.rejected == {"duplicate": 50}


def test_the_same_prompt_is_never_on_both_sides(prepare, write_alpaca):
    data = [(f"Question {i % 40}?", f"Answer {i}") for i in range(400)]
    data += [{"instruction": "Continue.", "input": f"text {i % 40}", "output": f"more {i}"} for i in range(400)]
    prepared = prepare([alpaca(write_alpaca(data))], evaluation_fraction=0.3, shard_records=37)

    def prompts(side: str) -> set[tuple[str, str]]:
        return {(r["messages"][0]["content"], r.get("meta", {}).get("input", "")) for r in prepared.records(side)}

    assert prompts("train") and prompts("evaluation")
    assert prompts("train").isdisjoint(prompts("evaluation"))
    assert prepared.result.kept == 800


def test_the_kept_set_does_not_hang_on_the_size_of_shards(prepare, write_alpaca):
    data = [*rows(150), *rows(40), *DIRTY]
    sources = [
        alpaca(write_alpaca(data, "a.json"), maxRecords=90),
        alpaca(write_alpaca(data[::-1], "b.json"), weight=0.5),
    ]

    def prepare_in(shard_records: int):
        name = f"by-{shard_records}"
        return prepare(sources, name, shard_records=shard_records, max_rejected_fraction=0.5, evaluation_fraction=0.1)

    by_10, by_1000 = prepare_in(10), prepare_in(1000)
    check_sums(by_10)
    check_sums(by_1000)
    assert by_10.result.shards == 40
    for side in ("train", "evaluation"):
        assert by_10.records(side) == by_1000.records(side)
    assert by_10.rejected() == by_1000.rejected()
    assert by_10.result.statistics == by_1000.result.statistics


def test_caps_choose_by_content_and_count_what_they_leave_out(prepare, write_alpaca):
    path, shuffled = write_alpaca(rows(300)), write_alpaca(rows(300)[::-1], "shuffled.json")
    half = prepare([alpaca(path, weight=0.5)], "half")
    check_sums(half)
    assert half.result.rejected["capped"] == pytest.approx(150, abs=40)
    fifty = prepare([alpaca(path, maxRecords=50)], "fifty")
    other = prepare([alpaca(shuffled, maxRecords=50)], "other")
    assert (fifty.result.kept, fifty.result.rejected) == (50, {"capped": 250})

    def kept(prepared) -> set[str]:
        return {r["id"] for side in ("train", "evaluation") for r in prepared.records(side)}

    assert kept(fifty) == kept(other)
    assert kept(prepare([alpaca(path, maxRecords=50)], "seeded", seed=1)) != kept(fifty)
    assert prepare([alpaca(path, maxRecords=900)], "all").result.kept == 300


def test_the_output_is_the_same_to_the_byte_for_any_number_of_workers(prepare, write_alpaca, monkeypatch):
    monkeypatch.setattr(coordinator_module, "CANDIDATES_PER_RANGE", 100)
    sources = [
        alpaca(write_alpaca([*rows(400), *DIRTY])),
        alpaca(write_alpaca(rows(100, 350), "second.json"), maxRecords=80),
    ]
    inline = prepare(sources, "inline", cache="c0", shard_records=50)
    check_sums(inline)
    monkeypatch.setattr(prepare_module, "INLINE_BYTES", 0)
    for workers in (1, 2, 3):
        pooled = prepare(sources, f"w{workers}", workers, cache=f"c{workers}", shard_records=50)
        assert pooled.files() == inline.files()
        assert pooled.result.files == inline.result.files


def test_a_second_preparation_reuses_shards_and_a_third_everything(prepare, write_alpaca):
    path = write_alpaca(rows(100))
    first = prepare([alpaca(path)], "a", shard_records=10)
    assert (first.result.shards, first.result.reused_shards) == (10, 0)
    second = prepare([alpaca(path)], "b", shard_records=10, evaluation_fraction=0.3, seed=4)
    assert second.result.reused_shards == 10
    write_alpaca(rows(100) + rows(5, 700))
    grown = prepare([alpaca(path)], "c", shard_records=10)
    assert (grown.result.shards, grown.result.reused_shards) == (11, 10)
    again = prepare([alpaca(path)], "c", shard_records=10)
    assert again.progress == []
    assert again.result == grown.result


def test_a_damaged_output_is_made_again(prepare, write_alpaca):
    path = write_alpaca(rows(50))
    first = prepare([alpaca(path)])
    (first.folder / "train" / "part-00000.jsonl").unlink()
    again = prepare([alpaca(path)])
    assert again.files() == prepare([alpaca(path)], "fresh").files()
    check_sums(again)


def test_progress_counts_records_up_to_the_total(prepare, write_alpaca):
    prepared = prepare([alpaca(write_alpaca(rows(50)))], shard_records=10)
    activities = list(dict.fromkeys(p.activity for p in prepared.progress))
    assert activities == ["reading sources", "cleaning and tokenising", "finding duplicates", "writing examples"]
    cleaning = [p for p in prepared.progress if p.activity == "cleaning and tokenising"]
    assert [p.done for p in cleaning] == sorted(p.done for p in cleaning)
    assert (cleaning[-1].done, cleaning[-1].total, cleaning[-1].unit) == (50, 50, "records")
    assert {p.phase for p in prepared.progress} == {"Preparing"}


def test_more_broken_rows_than_allowed_stop_the_job_and_say_where(prepare, write_alpaca, tmp_path):
    path = write_alpaca([*rows(8), {"question": "?"}, 7])
    with pytest.raises(DataError) as caught:
        prepare([alpaca(path)], max_rejected_fraction=0.19)
    message = str(caught.value)
    for part in (
        "2 of 10 rows (20.0%)",
        "2 malformed",
        "19.0%",
        str(path),
        "rejected.jsonl",
        "row 9",
        "`instruction` is missing",
    ):
        assert part in message
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare([alpaca(path)], max_rejected_fraction=0.2).result.kept == 8


def test_rows_that_are_empty_or_doubled_are_not_broken(prepare, write_alpaca):
    prepared = prepare(
        [alpaca(write_alpaca([*rows(2), *[("a", "")] * 8, *rows(2) * 8]))],
        max_rejected_fraction=0,
        evaluation_fraction=0,
    )
    assert prepared.result.kept == 2
    assert {"malformed", "bad-turns"} == RejectionReason.BROKEN


@pytest.mark.parametrize(
    "content, words",
    [
        ("[]", "hold no record"),
        ('[{"instruction": "a", "output": ""}]', "No record is left to train on (1 empty-answer)"),
    ],
)
def test_no_record_left_is_an_error_with_reasons(prepare, tmp_path, content, words):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError) as caught:
        prepare([alpaca(tmp_path / "x.json")])
    assert words in str(caught.value)


def test_a_missing_source_is_named_before_any_work(make_spec, tmp_path, write_alpaca):
    spec = make_spec([alpaca(write_alpaca(rows(3))), alpaca(tmp_path / "gone.json", name="mine")])
    with pytest.raises(DataError, match=r"data.sources\[1\] \(mine\) can't be read: .*gone.json does not exist"):
        plan_data(spec, "tokenizer")


def test_records_without_columns_are_refused(make_spec, write_alpaca):
    with pytest.raises(DataError, match="needs `columns`"):
        plan_data(make_spec([{"uri": str(write_alpaca(rows(1))), "format": "records"}]), "tokenizer")


def test_the_plan_changes_with_what_changes_the_outcome_and_with_nothing_else(make_spec, write_alpaca):
    path = write_alpaca(rows(3))
    digest = plan_data(make_spec([alpaca(path)]), "t").digest
    assert plan_data(make_spec([alpaca(path)], workers=7), "t").digest == digest
    assert plan_data(make_spec([alpaca(path)], seed=7), "t").digest != digest
    assert plan_data(make_spec([alpaca(path)]), "u").digest != digest
    assert plan_data(make_spec([alpaca(path)], sequence_length=256), "t").digest != digest
    write_alpaca(rows(4))
    assert plan_data(make_spec([alpaca(path)]), "t").digest != digest


def test_a_full_disk_is_said_in_a_sentence(make_spec, write_alpaca, random_base, tmp_path):
    spec = make_spec([alpaca(write_alpaca(rows(3)))])

    def fail(progress) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space is left"):
        prepare_data(spec, plan_data(spec, "t"), random_base, tmp_path / "o", tmp_path / "c", fail)


def test_a_folder_of_many_formats_and_compressions_is_one_source(prepare, tmp_path):
    import gzip

    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    lines = [json.dumps({"q": f"q{i}", "a": f"a{i}"}) for i in range(6)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:2]).encode()))
    (folder / "b.json").write_text("[" + ",".join(lines[2:4]) + "]")
    (folder / "c.csv").write_text("q,a\nq4,a4\n")
    (folder / "deep" / "b.json").write_bytes(lines[5].encode())
    parquet.write_table(pa.table({"q": ["q6"], "a": ["a6"]}), folder / "d.parquet")
    (folder / "README.md").write_text("about")
    source = {"uri": str(folder), "format": "records", "columns": {"instruction": "q", "output": "a"}}
    prepared = prepare([source], evaluation_fraction=0)
    check_sums(prepared)
    assert [(r["file"], r["messages"][0]["content"]) for r in prepared.records("train")] == [
        ("a.jsonl.gz", "q0"),
        ("a.jsonl.gz", "q1"),
        ("b.json", "q2"),
        ("b.json", "q3"),
        ("c.csv", "q4"),
        ("d.parquet", "q6"),
        ("deep/b.json", "q5"),
    ]


def test_sources_are_named_after_their_files_and_kept_apart(prepare, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "My Data.jsonl").write_text(json.dumps({"instruction": folder, "output": "x"}))
    prepared = prepare(
        [alpaca(tmp_path / f / "My Data.jsonl", license="MIT") for f in ("a", "b")], evaluation_fraction=0
    )
    assert [s.name for s in prepared.result.sources] == ["my-data", "my-data-2"]
    assert prepared.result.sources[0].license == "MIT"


def test_long_conversations_become_chunks_of_one_record(prepare, tmp_path):
    turns = [{"from": w, "value": f"{w} {i} " + "word " * 30} for i in range(8) for w in ("human", "gpt")]
    (tmp_path / "s.json").write_text(json.dumps([{"id": "c1", "conversations": turns}]))
    prepared = prepare(
        [{"uri": str(tmp_path / "s.json"), "format": "sharegpt"}],
        sequence_length=300,
        system="Be brief.",
        evaluation_fraction=0,
    )
    check_sums(prepared)
    result, records = prepared.result, prepared.records("train")
    assert result.kept == 1 < result.train.examples == len(records)
    assert [r["chunk"] for r in records] == list(range(len(records)))
    assert all(r["messages"][0] == {"role": "system", "content": "Be brief."} for r in records)
    said = [m["content"] for r in records for m in r["messages"] if m["role"] != "system"]
    assert said == [t["value"].strip() for t in turns]
    assert len({r["id"].split("_")[0] for r in records}) == 1


def test_exchanges_left_out_of_a_kept_record_are_told(prepare, tmp_path):
    turns = [("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "word " * 600), ("human", "e"), ("gpt", "f")]
    rows = [{"conversations": [{"from": w, "value": v} for w, v in turns]}]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    prepared = prepare([{"uri": str(tmp_path / "s.json"), "format": "sharegpt"}], evaluation_fraction=0)
    assert prepared.result.kept == 1
    assert [r["meta"]["droppedPairs"] for r in prepared.records("train")] == [1, 1]
    assert "1 exchanges longer than" in prepared.progress[-1].message


@pytest.mark.parametrize("policy, kept", [("truncate", 2), ("reject", 1), ("chunk", 1)])
def test_the_policy_decides_what_becomes_of_a_long_answer(prepare, write_alpaca, policy, kept):
    data = [("Short", "x"), ("Long", "word " * 900)]
    prepared = prepare([alpaca(write_alpaca(data))], long_records=policy, evaluation_fraction=0)
    check_sums(prepared)
    assert prepared.result.kept == kept
    lengths = {c.sequence_length: c.cut_fraction for c in prepared.result.length_choices}
    assert lengths[512] == 0.5, "what a longer sequence would let in counts"


def test_domains_are_told_by_tags_and_the_first_one_wins(prepare, tmp_path):
    rows = [{"q": f"q{i}", "a": "a", "t": t} for i, t in enumerate(["r,lm", "python", "lm", "", "R"])]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {
        "uri": str(tmp_path / "x.jsonl"),
        "format": "records",
        "columns": {"instruction": "q", "output": "a", "tags": "t"},
    }
    prepared = prepare([source], domains={"stats": ["lm", "r"], "code": ["python", "r"]})
    counts = {r.domain: r.samples for r in prepared.result.statistics if r.stage == "kept"}
    assert counts == {"stats": 3, "code": 1, "other": 1, "overall": 5}


def test_a_template_that_never_stops_is_refused(make_spec, write_alpaca, tmp_path, random_base):
    broken = tmp_path / "broken-base"
    shutil.copytree(random_base, broken)
    (broken / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    spec = make_spec([alpaca(write_alpaca(rows(3)))])
    with pytest.raises(DataError, match="stop token"):
        prepare_data(spec, plan_data(spec, "t"), broken, tmp_path / "o", tmp_path / "c", lambda p: None)


def test_the_working_folder_holds_nothing_hidden_after_a_run(prepare, write_alpaca):
    prepared = prepare([alpaca(write_alpaca(rows(100)))], evaluation_fraction=0.2)
    assert sorted(p.name for p in prepared.folder.iterdir()) == [
        "evaluation",
        "manifest.json",
        "rejected.jsonl",
        "tokens",
        "train",
    ]
