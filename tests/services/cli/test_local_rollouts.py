"""Rollouts on one machine, with real engines and real small models: canaries under traffic, refusals, votes, restarts, Ctrl-C."""

import json
import shutil
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import psutil
import pytest
from services.cli.local_server import MODEL, Callers, LocalServing, post, serve

from llamero.cli.adapterfolders import add_golden, find_base_at_hand, read_adapter_folder

pytestmark = [pytest.mark.xdist_group("local-rollouts"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folders(random_base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of three adapters with golden prompts beside their files, as an evaluation leaves them."""
    root = tmp_path_factory.mktemp("served-adapters")
    base = find_base_at_hand(random_base)
    for name in ("plain-a", "plain-b", "narrow"):
        shutil.copytree(adapters[name], root / name)
        made = add_golden(read_adapter_folder(root / name), base, None, root / name)
        assert made.golden is not None, f"base and {name} can't be told apart"
    return {path.name: path for path in root.iterdir()}


def start(random_base: Path, folder: Path, *options: str) -> tuple[str, ...]:
    """Steps that a test can wait for."""
    return (
        *("--base", str(random_base), "--adapter", f"{MODEL}={folder}"),
        *("--steps", "25,100", "--interval", "1", "--min-requests", "3"),
        *options,
    )


def set_analysis(serving: LocalServing, **analysis: object) -> None:
    """As a user edits server.json."""
    with serving.server.edit() as raw:
        strategy = raw["spec"].setdefault("strategy", {})
        strategy["analysis"] = {**strategy.get("analysis", {}), **analysis}


def test_a_new_adapter_takes_over_under_traffic_and_no_caller_notices_a_failure(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path, *start(random_base, folders["plain-a"])) as serving:
        old, base = serving.say(), serving.say(model=random_base.name)
        assert old != base
        with Callers(serving) as callers:
            answer = serving.llamero("rollout", "start", f"{MODEL}={folders['plain-b']}")
            assert answer.stdout == f"{MODEL} gets the adapter tutor-2: it takes over step by step.\n", answer.stderr
            serving.wait_for("a canary at 25%", lambda n: n.weight == 25)
            serving.wait_for("the promotion", lambda n: n.adapter == "tutor-2" and n.canary is None)
            time.sleep(1)
        new = serving.say()
        assert new not in (old, base)
        assert callers.failures == []
        assert set(callers.answers) == {old, new}, "an answer by another model"
        for told in callers.told.values():
            assert [answer for answer, _ in groupby(told)] in ([old, new], [new]), "a caller went to and fro"
        assert "RolloutStep: tutor: tutor-2 is good at 25%" in serving.text
        status = serving.llamero("rollout", "status", MODEL, "--wait").stdout
        assert "tutor-2 serves all callers of tutor." in status
        again = serving.llamero("rollout", "start", f"{MODEL}={folders['plain-b']}")
        assert "unchanged" in again.stdout and again.returncode == 0


def spoil_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))


def spoil_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def spoil_nothing_but_the_weights_are_gone(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def test_bad_adapters_are_refused_and_the_old_one_serves_on(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path / "runs", *start(random_base, folders["plain-a"])) as serving:
        old = serving.say()
        with Callers(serving, users=3) as callers:
            for spoil, says in (
                (spoil_rank, "where adapter_config.json says 3"),
                (spoil_weights, "can't be read as safetensors"),
                (spoil_nothing_but_the_weights_are_gone, "adapter_model.safetensors is missing"),
            ):
                folder = shutil.copytree(folders["plain-b"], tmp_path / spoil.__name__)
                spoil(folder)
                answer = serving.llamero("rollout", "start", f"{MODEL}={folder}")
                assert answer.returncode == 2, answer.stdout
                assert says in answer.stderr and len(answer.stderr.splitlines()) == 1
            # One that is damaged after it was taken in: nobody but the agent can see it.
            serving.llamero("rollout", "pause", MODEL)
            weights = serving.server.files_of("tutor-2") / "adapter_model.safetensors"
            started = threading_start(serving, folders["narrow"])
            while not weights.is_file():
                assert started.poll() is None or weights.is_file(), started.communicate()
                time.sleep(0.01)
            data = bytearray(weights.read_bytes())
            data[-1] ^= 0xFF
            weights.write_bytes(data)
            assert started.wait(60) == 0
            serving.wait_for("the refusal", lambda n: n.canary is None and "tutor-2" in n.message)
            time.sleep(1)
        assert callers.failures == []
        assert set(callers.answers) == {old}
        listed = serving.llamero("adapters", "list").stdout
        assert "Refused" in next(line for line in listed.splitlines() if line.startswith("tutor-2"))
        assert serving.name().adapter == "tutor-1"


def threading_start(serving: LocalServing, folder: Path) -> "subprocess.Popen[str]":
    """`rollout start` beside the test."""
    command = [
        sys.executable,
        "-m",
        "llamero",
        "rollout",
        "start",
        f"{MODEL}={folder}",
        "--workdir",
        str(serving.workdir),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_adapter_that_people_vote_down_is_rolled_back_with_the_reason_and_tried_again_when_asked(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path, *start(random_base, folders["plain-a"], "--steps", "50,100")) as serving:
        old = serving.say()
        set_analysis(serving, minRequests=1000, minVotes=4)
        serving.llamero("rollout", "start", f"{MODEL}={folders['plain-b']}")
        serving.wait_for("a canary at 50%", lambda n: n.weight == 50)
        votes = {"up": 0, "down": 0}
        for number in range(200):
            answer = serving.ask(f"voter-{number}")
            vote = "up" if answer["choices"][0]["message"]["content"] == old else "down"
            status, _ = post(f"{serving.url}/v1/votes", {"id": answer["id"], "vote": vote})
            assert status == 200
            votes[vote] += 1
            if min(votes.values()) >= 6:
                break
        serving.wait_for("the rollback", lambda n: n.state == "RolledBack")
        name = serving.name()
        assert name.adapter == "tutor-1" and "votes" in name.message
        status = serving.llamero("rollout", "status", MODEL, "--wait")
        assert status.returncode == 1 and "tutor is RolledBack: " in status.stderr
        assert {serving.say(f"voter-{n}") for n in range(20)} == {old}
        retry = serving.llamero("rollout", "retry", MODEL)
        assert "configured: tutor-2 takes over tutor step by step once more." in retry.stdout
        serving.wait_for("another try", lambda n: n.canary == "tutor-2" and n.weight == 50)
        promoted = serving.llamero("rollout", "promote", MODEL)
        assert "tutor-2 takes all callers" in promoted.stdout
        serving.wait_for("the promotion", lambda n: n.adapter == "tutor-2")
        assert serving.say() != old


def test_ctrl_c_leaves_no_process_and_the_next_start_goes_on_where_the_rollout_was(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path, *start(random_base, folders["plain-a"])) as serving:
        serving.llamero("rollout", "pause", MODEL)
        serving.llamero("rollout", "start", f"{MODEL}={folders['plain-b']}")
        serving.wait_for("the held canary", lambda n: n.state == "Paused" and n.canary == "tutor-2")
        serving.llamero("rollout", "resume", MODEL)
        serving.wait_for("a canary at 25%", lambda n: n.weight == 25)
        paused = serving.llamero("rollout", "pause", MODEL)
        assert "tutor-2 stays at 25% of the callers" in paused.stdout
        serving.wait_for("the pause", lambda n: n.state == "Paused")
        step = serving.name().step_id
        second = subprocess.run(
            [sys.executable, "-m", "llamero", "serve", "--base", str(random_base), "--workdir", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 2 and "Another llamero serves local" in second.stderr
        children = serving.children()
        assert len(children) >= 2
        assert serving.interrupt() == 130
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
    later = serving.llamero("rollout", "resume", MODEL)
    assert "nothing serves it now" in later.stdout
    moved = shutil.copytree(random_base, tmp_path / "moved" / random_base.name)
    with serve(tmp_path, "--base", str(moved)) as serving:  # without a word of adapters: those that it serves are known
        assert serving.name().adapter == "tutor-1"
        assert (serving.name().canary, serving.name().step_id) == ("tutor-2", step)
        with Callers(serving) as callers:
            serving.wait_for("the promotion", lambda n: n.adapter == "tutor-2")
        assert callers.failures == []
        assert serving.interrupt() == 130


def test_an_engine_that_dies_is_started_again_with_its_adapters(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path, *start(random_base, folders["plain-a"])) as serving:
        before = serving.say()
        serving.child("llamero.engine").kill()
        deadline = time.monotonic() + 60
        while "is started again" not in serving.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        statuses = set()
        while True:
            status, answer = post(
                f"{serving.url}/v1/chat/completions",
                {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": "Tell me about rain."}],
                    "temperature": 0,
                    "max_tokens": 12,
                },
            )
            statuses.add(status)
            if status == 200:
                break
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)
        assert statuses <= {200, 503}
        assert answer["choices"][0]["message"]["content"] == before


def test_a_manifest_that_somebody_breaks_by_hand_changes_nothing_that_is_served(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path, *start(random_base, folders["plain-a"])) as serving:
        whole = serving.server.manifest_file.read_text()
        with Callers(serving, users=2) as callers:
            for broken, told in (
                (whole[: len(whole) // 2], lambda: "Unreadable: " in serving.text),
                (whole.replace('"type": "cpu"', '"type": "cup"'), lambda: serving.stalled() != ""),
            ):
                serving.server.manifest_file.write_text(broken)
                deadline = time.monotonic() + 60
                while not told():
                    assert time.monotonic() < deadline, serving.text
                    time.sleep(0.1)
            serving.server.manifest_file.write_text(whole)
            while serving.stalled():
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert callers.failures == []
        assert len(set(callers.answers)) == 1


def test_a_deleted_adapter_goes_when_nothing_needs_it_and_stays_while_it_serves(
    random_base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with serve(tmp_path, *start(random_base, folders["plain-a"], "--steps", "100")) as serving:
        serving.llamero("rollout", "start", f"{MODEL}={folders['plain-b']}")
        serving.wait_for("the promotion", lambda n: n.adapter == "tutor-2")
        gone = serving.llamero("adapters", "delete", "tutor-1")
        assert gone.returncode == 0, gone.stderr
        deadline = time.monotonic() + 30
        while serving.server.files_of("tutor-1").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "tutor-1" not in [a.name for a in serving.server.read_adapters()]
        serving.llamero("adapters", "delete", "tutor-2")
        serving.wait_for("the word of it", lambda n: "being deleted" in n.message)
        assert serving.say()
        assert serving.server.files_of("tutor-2").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("serve",), 2, "Give a JOB, or --base DIR with --adapter NAME=DIR."),
        (("serve", "job", "--base", "x"), 2, "JOB serves its own base and adapter"),
        (("serve", "--base", "nowhere"), 2, "The base model's folder nowhere does not exist."),
        (("serve", "--base", "BASE", "--adapter", "tutor"), 2, "tutor is no NAME=DIR"),
        (("serve", "--base", "BASE", "--adapter", "tutor=nowhere"), 2, "There is no folder nowhere."),
        (("serve", "--base", "BASE", "--adapter", "tutor=BASE"), 2, "holds no adapter: adapter_config.json is missing"),
        (("serve", "--base", "BASE", "--adapter", "two words=A"), 2, "`two words` is no public name"),
        (("serve", "--base", "BASE", "--adapter", "random-llama=A"), 2, "random-llama is answered by the base itself"),
        (("serve", "--base", "BASE", "--server", "../up"), 2, "`../up` is no name for a server"),
        (("serve", "--base", "BASE", "--steps", "50,20"), 2, "--steps 50,20: whole percents that rise to 100"),
        (("rollout", "start", "tutor=A"), 2, "has no local server: start one with `llamero serve --base DIR"),
        (("rollout", "pause", "tutor"), 2, "has no local server"),
        (("rollout", "status", "--wait"), 2, "--wait needs a MODEL."),
    ],
)  # fmt: skip
def test_what_can_t_be_done_is_one_sentence_and_a_code(
    random_base: Path, folders: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    filled = [a.replace("BASE", str(random_base)).replace("=A", f"={folders['plain-a']}") for a in arguments]
    answer = subprocess.run(
        [sys.executable, "-m", "llamero", *filled, "--workdir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (answer.returncode, says in answer.stderr) == (code, True), answer.stderr
    assert "Traceback" not in answer.stderr
