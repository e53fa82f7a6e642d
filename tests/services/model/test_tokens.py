from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamero.model.tokens import TokenSet, TokenWriter

example = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 1)), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(example, max_size=6), min_size=1, max_size=4))
def test_what_is_written_is_read_over_all_parts(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[tuple[int, int]]]]
) -> None:
    root = tmp_path_factory.mktemp("tokens")
    folders = [root / f"part-{i}" for i in range(len(parts))]
    for folder, examples in zip(folders, parts, strict=True):
        with TokenWriter(folder) as writer:
            for i, pairs in enumerate(examples):
                writer.append([p[0] for p in pairs], [p[1] for p in pairs], f"{folder.name}-{i}")
    tokens = TokenSet.open(folders)
    flat = [(f"part-{n}-{i}", pairs) for n, examples in enumerate(parts) for i, pairs in enumerate(examples)]
    assert len(tokens) == len(flat)
    assert tokens.lengths.tolist() == [len(pairs) for _, pairs in flat]
    assert tokens.tokens == sum(len(pairs) for _, pairs in flat)
    assert tokens.target_lengths.tolist() == [sum(m for _, m in pairs[1:]) for _, pairs in flat]
    assert tokens.target_tokens == sum(tokens.target_lengths.tolist())
    for i, (record, pairs) in enumerate(flat):
        ids, mask = tokens[i]
        assert [ids.tolist(), mask.tolist()] == [[p[0] for p in pairs], [p[1] for p in pairs]]
        assert tokens.record_id(i) == record


def test_the_writer_counts_what_the_set_will_train(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "t") as writer:
        writer.append([1, 2, 3], [1, 1, 0], "a")
        assert (len(writer), writer.target_tokens) == (1, 1)
    assert TokenSet.open(tmp_path / "t").target_tokens == 1


def test_a_set_that_was_not_finished_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), TokenWriter(tmp_path / "t") as writer:
        writer.append([1], [1], "a")
        raise RuntimeError
    with pytest.raises(FileNotFoundError, match="no finished token set"):
        TokenSet.open(tmp_path / "t")


def test_a_second_writer_makes_a_finished_set_unfinished_first(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "t") as writer:
        writer.append([1], [1], "a")
    with TokenWriter(tmp_path / "t"), pytest.raises(FileNotFoundError):
        TokenSet.open(tmp_path / "t")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "t") as writer:
        writer.append([1, 2, 3], [0, 1, 1], "a")
    (tmp_path / "t" / "mask.bin").write_bytes(b"\0\1")
    with pytest.raises(ValueError, match=r"mask\.bin"):
        TokenSet.open(tmp_path / "t")


@pytest.mark.parametrize(("ids", "mask"), [([], []), ([1, 2], [1]), ([[1]], [[1]])])
def test_a_bad_example_is_refused_with_its_record(tmp_path: Path, ids: list[int], mask: list[int]) -> None:
    with pytest.raises(ValueError, match="record-7"), TokenWriter(tmp_path / "t") as writer:
        writer.append(np.array(ids, dtype=np.int64), np.array(mask, dtype=np.int64), "record-7")


def test_an_index_beyond_the_set_is_an_error(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "t"):
        pass
    tokens = TokenSet.open([tmp_path / "t"])
    assert (len(tokens), tokens.tokens, tokens.target_tokens) == (0, 0, 0)
    with pytest.raises(IndexError):
        tokens[0]
