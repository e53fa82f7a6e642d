"""Containers as local processes: start, end, exit code, termination message, and everything they started.

A container's processes are known by a variable in their environment, `container`, so that children in sessions of their
own end with it as in a pid namespace. Its root folder is not the image's: commands resolve in the folders of
programs that the runtime was given (stand-ins for what an image would hold), in the checkout's virtual environment, then in the machine's PATH.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import expand
from cluster.leftovers import kill_marked, kill_orphans, make_folder, mark_of
from cluster.processes import dying_with_parent
from cluster.runtimes import MESSAGE_BYTES, Exit, Launch, LaunchError, Running

REPOSITORY = Path(__file__).parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_MESSAGE_PATH = "/dev/termination-log"
LOG_MESSAGE_BYTES = 2048
LOG_MESSAGE_LINES = 80
PASSED_ON = ("LLAMERO_CACHE",)


class ProcessRuntime:
    """Runs containers as processes of this machine, as this user, on its network."""

    needs_files = True
    has_probes = True

    def __init__(self, programs: Sequence[Path] = (), environment: Mapping[str, str] | None = None) -> None:
        """`programs` are folders of executables before all others; `environment` is what every container has unless it says otherwise."""
        self._path = ":".join(str(folder) for folder in (*programs, REPOSITORY / ".venv" / "bin", SYSTEM_PATH))
        self._environment = dict(environment or {})
        kill_orphans()

    async def start(self, launch: Launch) -> Running:
        """Raises LaunchError where the command can't be found or executed."""
        return ContainerProcess(await asyncio.to_thread(_start, launch, {**self._environment, "PATH": self._path}))


@dataclass(frozen=True)
class Started:
    """A process and what it was started with."""

    launch: Launch
    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]
    folder: Path
    message_file: Path
    scratch: Path


def _start(launch: Launch, given: Mapping[str, str]) -> Started:
    launch.folder.mkdir(parents=True, exist_ok=True)
    message_file = launch.folder / f"{launch.restart}.message"
    message_file.touch()
    scratch = _scratch(launch)
    environment = {**_base_environment(launch, scratch), **given, **_translated(launch, message_file)}
    environment.update(launch.node_environment)
    command = [
        _word(expand(word, launch.environment), launch, message_file)
        for word in [*(launch.container.get("command") or []), *(launch.container.get("args") or [])]
    ]
    if not command:
        raise LaunchError("the process node needs an explicit command: there is no image to take one from")
    folder = _working_folder(launch)
    program = _find_program(command[0], folder, environment["PATH"])
    if program is None:
        raise LaunchError(f'exec: "{command[0]}": executable file not found in $PATH')
    # Dies with this thread of the loop's executor, which lives as long as the loop.
    with launch.log.open("ab") as stream:
        process = subprocess.Popen(
            dying_with_parent([program, *command[1:]]),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    return Started(launch, process, environment, folder, message_file, scratch)


def _find_program(word: str, folder: Path, path: str) -> str | None:
    """The program's file; a word with a slash is relative to the working folder, not to the tests'."""
    return shutil.which(str(folder / word) if "/" in word else word, path=path)


def _scratch(launch: Launch) -> Path:
    """A short folder for TMPDIR (a socket's path has 108 bytes at most); a volume mounted at /tmp is it instead."""
    mounted = launch.mounts.real("/tmp")
    place = make_folder("pod")
    if mounted is not None:
        (place / "tmp").symlink_to(mounted)
    else:
        (place / "tmp").mkdir()
    return place


def _base_environment(launch: Launch, scratch: Path) -> dict[str, str]:
    home = launch.folder / "home"
    home.mkdir(exist_ok=True)
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(scratch / "tmp"),
        "container": mark_of(launch.container_id),
        **passed,
    }


def _translated(launch: Launch, message_file: Path) -> dict[str, str]:
    return {name: _word(value, launch, message_file) for name, value in launch.environment.items()}


def _word(text: str, launch: Launch, message_file: Path) -> str:
    if text == launch.container.get("terminationMessagePath", DEFAULT_MESSAGE_PATH):
        return str(message_file)
    return launch.mounts.translate(text)


def _working_folder(launch: Launch) -> Path:
    asked = launch.container.get("workingDir")
    if asked:
        for place in (launch.mounts.real(asked), Path(asked)):
            if place is not None and place.is_dir():
                return place
    return launch.folder / "home"


class ContainerProcess:
    """One container's main process; belongs to the loop that it is made in."""

    def __init__(self, started: Started) -> None:
        self.launch = started.launch
        self._environment = started.environment
        self._folder = started.folder
        self._message_file = started.message_file
        self._scratch = started.scratch
        self._process = started.process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        self._cleaning = self._loop.create_task(self._finish(code))

    async def _finish(self, code: int) -> None:
        await asyncio.to_thread(kill_marked, self.launch.container_id)
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        self._ended.set_result(self._exit(code))

    def _exit(self, code: int) -> Exit:
        if code < 0:
            return Exit(128 - code, self._message(failed=True), signal=-code)
        return Exit(code, self._message(failed=code != 0))

    def _message(self, failed: bool) -> str:
        message = self._message_file.read_bytes()[:MESSAGE_BYTES].decode(errors="replace")
        policy = self.launch.container.get("terminationMessagePolicy", "File")
        if message or not failed or policy != "FallbackToLogsOnError":
            return message
        tail = self.launch.log.read_bytes()[-LOG_MESSAGE_BYTES:].decode(errors="replace")
        return "".join(tail.splitlines(keepends=True)[-LOG_MESSAGE_LINES:])

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    def send(self, signal_number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal_number)

    def kill(self) -> None:
        if not self._ended.done():
            self.send(signal.SIGKILL)
            kill_marked(self.launch.container_id)

    async def execute(self, command: list[str], seconds: float) -> Exit:
        """Runs a command beside the main process; its output is the message. 124 where it took too long."""
        words = [self.launch.mounts.translate(expand(word, self.launch.environment)) for word in command]
        return await asyncio.to_thread(self._execute, words, seconds)

    def _execute(self, words: list[str], seconds: float) -> Exit:
        program = _find_program(words[0], self._folder, self._environment["PATH"])
        if program is None:
            return Exit(126, f'exec: "{words[0]}": executable file not found in $PATH')
        try:
            done = subprocess.run(
                [program, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._folder,
                timeout=seconds,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Exit(124, f"command timed out after {seconds:g} s")
        return Exit(done.returncode, done.stdout.decode(errors="replace")[-MESSAGE_BYTES:])
