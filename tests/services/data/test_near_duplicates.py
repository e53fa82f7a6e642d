"""The nearDuplicates step: what is alike, what is not for all its likeness, and that no layout of shards or order of tasks changes it."""

import random

import numpy as np
import pytest
from services.data.set_runner import SetRunner, make_record

from llamero.data.content import hash_prompt
from llamero.data.errors import DataError
from llamero.data.near import build_sets, find_near_duplicates
from llamero.data.near.choosing import choose_kept, complete_edges, compress, connect
from llamero.data.near.pairs import REPRESENTATIVES, measure_jaccard, pair_up
from llamero.data.near.sketch import LEAST_RECALL, choose_bands, sketch_sets
from llamero.data.near.words import LONGEST_BYTES, hash_words
from llamero.data.selection import is_held_out
from llamero.data.steps import near_duplicates
from llamero.spec.steps import NearDuplicatesStep

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnrst"]


def write_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def edit_words(text: str, share: float, rng: random.Random, kinds: int = 3) -> str:
    """The text with a share of its words replaced, and with 3 kinds also deleted or preceded by another, at random."""
    words = text.split(" ")
    for place in sorted(rng.sample(range(len(words)), max(1, round(share * len(words)))), reverse=True):
        match rng.randrange(kinds):
            case 0:
                words[place] = rng.choice(WORDS)
            case 1:
                del words[place]
            case 2:
                words.insert(place, rng.choice(WORDS))
    return " ".join(words)


def count_exactly(a: str, b: str) -> float:
    first, second = set(a.split(" ")), set(b.split(" "))
    return len(first & second) / len(first | second)


def run(tmp_path, records, shards=1, order="given", doubled=False, fraction=0.0, **options):
    step = near_duplicates.build(NearDuplicatesStep.model_validate(options))
    return SetRunner(tmp_path, order, doubled).run(step, records, shards, evaluation_fraction=fraction)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Name the capital of France.", "name   the CAPITAL of France"),
        ("a well-known fact", "a well known fact"),
        ("**Bold** words\n- and a list", "Bold words: and a list"),
        ("8 × 8 is what?", "8 * 8 is what"),
        ("x − 1 = 0", "x - 1 = 0"),
        ("Straße“quoted”", "STRASSE quoted"),
        ("１２ ｃａｔｓ", "12 cats"),
        ("١٢ cats", "12 cats"),
    ],
)
def test_texts_that_differ_in_form_alone_are_the_same_words(one, other):
    words = hash_words([one, other])
    first, second = words.hashes[: words.offsets[1]], words.hashes[words.offsets[1] :]
    assert sorted(set(first.tolist())) == sorted(set(second.tolist()))
    assert words.numbers[0] == words.numbers[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 8 × 8?", "What is 9 × 7?"),
        ("What is 8 × 8?", "What is 8 + 8?"),
        ("What is 8 - 3?", "What is 3 - 8?"),
        ("Take 3.5 pounds", "Take 35 pounds"),
        ("Take 3.5 pounds", "Take 3,5 pounds"),
        ("f = x*y", "f = x/y"),
        ("Is x < y so", "Is x > y so"),
        ("worth €5", "worth £5"),
        ("x ≤ 4", "x ≥ 4"),
        ("H2O it is", "H3O it is"),
        ("it is -5 degrees", "it is 5 degrees"),
        ("½ of it", "¼ of it"),
    ],
)
def test_texts_that_differ_in_a_number_or_an_operator_are_never_duplicates(one, other):
    filler = " and so on with many more words that are the same in both of these two texts"
    assert not len(find_near_duplicates([one + filler, other + filler], NearDuplicatesStep(threshold=0.3)).pairs)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("- an item\n- another", "an item\nanother"),
        ("* an item", "an item"),
        ("> a quote", "a quote"),
        ("up-to-date", "up to date"),
        ("Dear Sir, - he said", "Dear Sir - he said"),
    ],
)
def test_marks_and_hyphens_are_no_operators(one, other):
    words = hash_words([one, other])
    assert words.numbers[0] == words.numbers[1]


def test_scripts_without_blanks_count_each_character_as_a_word():
    assert hash_words(["中国的首都", "ab cd"]).lengths.tolist() == [5, 2]


def test_hashes_do_not_depend_on_the_texts_before():
    texts = [write_text(random.Random(i), 40) for i in range(20)] + ["", "x", "ü 5"]
    alone = [hash_words([t]) for t in texts]
    together = hash_words(texts * 300)  # several blocks
    assert together.hashes[: sum(len(a.hashes) for a in alone)].tolist() == [
        h for a in alone for h in a.hashes.tolist()
    ]
    assert together.numbers[: len(texts)].tolist() == [a.numbers[0] for a in alone]
    assert (together.lengths[: len(texts)] == [len(a.hashes) for a in alone]).all()


def test_a_text_of_many_megabytes_is_compared_by_its_beginning_and_harms_no_other():
    short = "a b c ü 5"
    words = hash_words([short, "word " * (LONGEST_BYTES // 4), short])
    assert words.lengths.tolist() == [5, LONGEST_BYTES // 5 + 1, 5]
    assert words.hashes[:5].tolist() == words.hashes[-5:].tolist()


@pytest.mark.parametrize(("threshold", "permutations"), [(0.5, 128), (0.7, 128), (0.8, 128), (0.9, 128), (0.8, 64)])
def test_bands_find_pairs_at_the_threshold_and_are_as_long_as_that_allows(threshold, permutations):
    bands = choose_bands(permutations, threshold)
    assert bands.count * bands.rows <= permutations
    assert bands.recall(threshold) >= LEAST_RECALL
    longer = bands.rows + 1
    assert 1 - (1 - threshold**longer) ** (permutations // longer) < LEAST_RECALL


def test_sketches_estimate_the_similarity_that_is_then_measured_exactly():
    rng = random.Random(0)
    texts = [write_text(rng, 120) for _ in range(100)]
    edited = [edit_words(t, 0.3, rng) for t in texts]
    for ngram in (1, 2):
        sets, _ = build_sets(texts + edited, ngram)
        pairs = np.stack([np.arange(100), np.arange(100) + 100], axis=1)
        exact = measure_jaccard(sets, pairs)
        if ngram == 1:
            assert exact == pytest.approx([count_exactly(a, b) for a, b in zip(texts, edited, strict=True)])
        sketches = sketch_sets(sets, 512)
        estimated = (sketches[:, :100] == sketches[:, 100:]).mean(axis=0)
        assert np.abs(estimated - exact).mean() < 0.03


@pytest.mark.parametrize("kinds", [1, 3])
def test_ten_percent_of_edited_words_are_found_and_all_that_is_found_is_alike(kinds):
    rng = random.Random(1)
    texts = [write_text(rng, rng.randrange(20, 120)) for _ in range(2000)]
    everything = texts + [edit_words(t, 0.1, rng, kinds) for t in texts[:1000]]
    found = find_near_duplicates(everything)
    planted = {(i, 2000 + i) for i in range(1000)}
    pairs = {tuple(p) for p in found.pairs.tolist()}
    assert len(planted & pairs) / len(planted) >= 0.95
    threshold = NearDuplicatesStep().threshold
    for a, b in pairs:
        assert count_exactly(everything[a], everything[b]) >= threshold
    for dropped in np.flatnonzero(found.favoured >= 0).tolist():
        assert count_exactly(everything[dropped], everything[found.favoured[dropped]]) >= threshold


def test_the_threshold_itself_counts_and_what_lies_below_does_not(tmp_path):
    # 8 of 10 words shared: 0.8; 7 of 10: 0.7
    same = "alpha beta gamma delta epsilon zeta eta"
    answers = ("theta longest", "theta longer", "mu nu")
    records = [make_record(i, same, answer) for i, answer in enumerate(answers)]
    assert run(tmp_path, records, threshold=0.8).dropped_lines == {2: "threshold"}
    assert run(tmp_path, records, threshold=0.81).dropped_lines == {}


def test_a_drop_tells_how_alike_it_is_to_which_record(tmp_path):
    same = "alpha beta gamma delta epsilon zeta eta"
    records = [make_record(0, same, "theta iota"), make_record(1, "unlike", "else"), make_record(2, same, "theta ka")]
    (drop,) = run(tmp_path, records, shards=3).drops.values()
    assert (drop.place, drop.value, drop.threshold, drop.other) == ((2, 0), 0.8, 0.75, (0, 0))


def plant(count: int) -> list:
    rng = random.Random(2)
    records = []
    for _ in range(count):
        prompt, answer = write_text(rng, 12), write_text(rng, rng.randrange(10, 60))
        copies = rng.choice([1, 1, 2, 3, 6])
        texts = [answer]
        while len(texts) < copies:  # each from the one before: chains
            texts.append(edit_words(texts[-1], 0.08, rng))
        records += [(prompt, t) for t in texts]
    rng.shuffle(records)
    return [make_record(i, *r, scores={"judge": float(rng.randrange(5))}) for i, r in enumerate(records)]


@pytest.mark.parametrize(("keep", "score"), [("longest", None), ("best", "judge"), ("first", None)])
def test_no_layout_order_or_doubled_task_changes_what_stays(tmp_path, monkeypatch, keep, score):
    monkeypatch.setattr(near_duplicates, "PARTITION_KEYS", 1500)
    monkeypatch.setattr(near_duplicates, "GROUP_RECORDS", 50)
    monkeypatch.setattr(near_duplicates, "PART_EDGES", 30)
    monkeypatch.setattr(near_duplicates, "_BATCH_VALUES", 2000)
    records = plant(80)
    options = {"keep": keep, "score": score, "threshold": 0.75}
    whole = run(tmp_path / "1", records, 1, **options)
    assert len(whole.drops) > 50
    assert len(whole.rounds[1][1]) > 1 and len(whole.rounds[4][1]) > 1
    for shards, order in ((3, "reversed"), (9, "shuffled")):
        cut = run(tmp_path / f"{shards}", records, shards, order, True, **options)
        assert cut.kept_lines == whole.kept_lines
    by_line = {r.line: r for r in records}
    for record, drop in whole.dropped:
        other = by_line[drop.other[1] + 1]
        assert count_exactly(record.text.replace("\n\n", " "), other.text.replace("\n\n", " ")) == drop.value >= 0.75
        assert other.line in whole.kept_lines
        if keep == "best":
            assert other.scores["judge"] >= record.scores["judge"]
        if keep == "longest":
            assert len(other.answer) >= len(record.answer)
        if keep == "first":
            assert other.line < record.line


def test_of_equal_ones_content_decides_not_the_place(tmp_path):
    one = make_record(0, "alpha beta gamma delta epsilon zeta eta", "theta iota")
    two = make_record(1, "alpha beta gamma delta epsilon zeta eta", "theta beth")
    first = run(tmp_path / "a", [one, two])
    second = run(tmp_path / "b", [two, one])
    assert first.kept[0].answer == second.kept[0].answer


def test_a_training_record_gives_way_to_a_held_out_one_however_good_it_is(tmp_path):
    rng = random.Random(3)
    records = []
    for i in range(30):
        words = write_text(rng, 25)
        records += [
            make_record(2 * i, f"{words} one", "short"),
            make_record(2 * i + 1, f"{words} two", "short and long"),
        ]
    found = run(tmp_path, records, 4, fraction=0.5)

    def held_out(record) -> bool:
        return is_held_out(int.from_bytes(hash_prompt(record.messages, record.input), "big"), 0, 0.5)

    pairs = [(records[2 * i], records[2 * i + 1]) for i in range(30)]
    mixed = [(a, b) for a, b in pairs if held_out(a) and not held_out(b)]
    assert len(mixed) > 3
    for shorter, longer in mixed:
        assert shorter.line in found.kept_lines and longer.line not in found.kept_lines
    both = [(a, b) for a, b in pairs if held_out(a) == held_out(b)]
    assert all(b.line in found.kept_lines and a.line not in found.kept_lines for a, b in both)


def test_rouge_compares_prompts_and_both_sides_of_its_limit_are_told(tmp_path):
    # 6 of 10 words in common order: F 0.6; with the third 5 of 10: 0.5
    records = [
        make_record(0, "write a short poem about the sea and its waves", "A poem."),
        make_record(1, "write a short poem about the sky over many lands", "Another thing altogether."),
        make_record(2, "write a short poem about old ships that sail home", "Nothing of the kind."),
    ]
    options = {"field": "prompt", "verify": "rouge-l", "keep": "first"}
    assert run(tmp_path, records, 2, threshold=0.61, **options).dropped_lines == {}
    assert run(tmp_path, records, 2, threshold=0.6, **options).dropped_lines == {2: "threshold"}


def test_a_bucket_costs_no_more_than_its_representatives():
    keys = np.zeros(1000, np.uint64)
    pairs = pair_up(keys, np.arange(1000, dtype=np.uint64))
    assert len(pairs) == sum(min(i, REPRESENTATIVES) for i in range(1000))
    assert len({tuple(p) for p in pairs.tolist()}) == len(pairs)
    small = pair_up(keys[: REPRESENTATIVES + 1], np.arange(REPRESENTATIVES + 1, dtype=np.uint64))
    assert len(small) == (REPRESENTATIVES + 1) * REPRESENTATIVES // 2


def test_many_copies_of_one_text_leave_one(tmp_path):
    records = [make_record(i, "the same words again and again", f"and an answer {'!' * (i % 7)}") for i in range(300)]
    assert len(run(tmp_path, records, 3).kept) == 1


def test_clusters_are_connected_whatever_the_order_of_their_edges():
    rng = np.random.default_rng(0)
    chain = rng.permutation(np.stack([np.arange(5000), np.arange(1, 5001)], axis=1))
    parents = np.arange(6000, dtype=np.int32)
    for part in np.array_split(chain, 7):
        connect(parents, part)
    compress(parents, np.arange(6000))
    assert (parents[:5001] == 0).all() and (parents[5001:] == np.arange(5001, 6000)).all()


def test_the_ends_of_a_chain_both_stay_when_they_are_unlike():
    def measure(pairs):
        return np.where(np.abs(pairs[:, 0] - pairs[:, 1]) == 1, 0.9, 0.1)

    edges = np.array([[0, 1], [1, 2]])
    completed = complete_edges(edges, measure(edges), np.zeros(3, np.int64), measure, 0.8)
    favoured, similarities = choose_kept(3, *completed)
    assert favoured.tolist() == [-1, 0, -1] and similarities[1] == 0.9


def test_members_that_met_in_no_band_are_compared_with_the_best():
    edges = np.array([[0, 1], [1, 2]])
    completed = complete_edges(edges, np.full(2, 0.9), np.zeros(3, np.int64), lambda p: np.full(len(p), 0.9), 0.8)
    assert choose_kept(3, *completed)[0].tolist() == [-1, 0, 0]


def test_texts_without_words_are_never_alike(tmp_path):
    assert not run(tmp_path, [make_record(i, "?!", "…") for i in range(4)]).drops


def test_no_records_leave_no_drops(tmp_path):
    assert run(tmp_path, [], 2).uris == []


def test_the_best_needs_a_score():
    with pytest.raises(DataError, match="needs `score`"):
        near_duplicates.build(NearDuplicatesStep(keep="best"))
