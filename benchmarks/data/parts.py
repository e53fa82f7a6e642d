"""What is measured: each part's sides, sizes and marks, as a table. How a side works stands in its own file under sides/."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

OWN, PEERS = "main", "peers"
ALPACA_RECORDS: Final = 52_002


@dataclass(frozen=True)
class Side:
    """One program: `sides/<file>.py` in one of the environments. `most`: it is not asked for more documents than this."""

    file: str
    environment: str
    label: str
    most: int = 10**9


@dataclass(frozen=True)
class Mark:
    """What must hold: `read(medians)` gives the value from each side's figures at the marked size, `at_least` or `at_most`."""

    name: str
    read: Callable[[dict[str, dict[str, Any]]], float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> float:
        return self.at_least if self.at_least is not None else self.at_most or 0.0

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least is not None else value <= self.bound


@dataclass(frozen=True)
class Part:
    """A comparison. `input`: a name of `inputs.Inputs` or `copies`; `sizes` of the curve, the last is the marked one, measured in
    `rounds`; `quick` sizes for a short run; `options` go to all sides; `rests_on`: a side whose files a later one reads."""

    name: str
    title: str
    sides: tuple[Side, ...]
    input: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    marks: tuple[Mark, ...] = ()
    rounds: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    quick_options: dict[str, Any] = field(default_factory=dict)
    unit: str = "documents"


def compare_rates(own: str, peer: str) -> Callable[[dict[str, dict[str, Any]]], float]:
    """The own side's documents a CPU-second over the peer's: other work on a machine disturbs it least."""
    return lambda figures: figures[own]["cpu_rate"] / figures[peer]["cpu_rate"]


def compare_wall_rates(own: str, peer: str) -> Callable[[dict[str, dict[str, Any]]], float]:
    """The same by the clock on the wall, where several processes work at once."""
    return lambda figures: figures[own]["rate"] / figures[peer]["rate"]


def find(side: str, name: str) -> Callable[[dict[str, dict[str, Any]]], float]:
    """Something that a side found."""
    return lambda figures: float(figures[side]["found"][name])


def read_seconds(side: str) -> Callable[[dict[str, dict[str, Any]]], float]:
    return lambda figures: float(figures[side]["wall_seconds"])


CURVE: Final = (6_500, 13_000, 26_000, ALPACA_RECORDS)
LARGE: Final = (125_000, 250_000, 500_000, 1_000_000)

PARTS: Final = (
    Part(
        "html", "HTML bodies to text",
        (Side("html_beautifulsoup", PEERS, "BeautifulSoup (lxml)"), Side("html_llamero", OWN, "llamero")),
        "bodies", (146, 292, 585, 1_170), (60,), options={"loops": 5}, quick_options={"loops": 1},
        marks=(
            Mark("html_over_beautifulsoup", compare_rates("html_llamero", "html_beautifulsoup"), at_least=8),
            Mark("html_texts_equal", find("html_llamero", "equal"), at_least=0.99),
        ),
    ),
    Part(
        "gopher", "Gopher's quality and repetition rules, profile gopher-strict",
        (Side("gopher_datatrove", PEERS, "datatrove"), Side("gopher_llamero", OWN, "llamero")),
        "alpaca", CURVE, (300,),
        marks=(
            Mark("gopher_over_datatrove", compare_rates("gopher_llamero", "gopher_datatrove"), at_least=20),
            Mark("gopher_parity_on_given_tokens", find("gopher_llamero", "parity"), at_least=0.995),
        ),
    ),
    Part(
        "near", "Near duplicates, verification apart",
        (
            Side("near_llamero", OWN, "llamero"), Side("near_rensa", PEERS, "rensa"),
            Side("near_datajuicer", PEERS, "Data-Juicer"), Side("near_datatrove", PEERS, "datatrove"),
        ),
        "alpaca", CURVE, (300,),
        marks=(
            Mark("near_seconds_over_rensa", compare_rates("near_rensa", "near_llamero"), at_most=1),
        ),
    ),
    Part(
        "planted", "Planted edits of one word in ten",
        (Side("near_llamero", OWN, "llamero"),),
        "planted", (12_000,), (12_000,), rounds=1,
        marks=(
            Mark("near_recall_at_planted_edits", find("near_llamero", "recall"), at_least=0.95),
            Mark("near_precision_after_verification", find("near_llamero", "precision"), at_least=1),
        ),
    ),
    Part(
        "recipe", "The default recipe, files to files, one worker",
        (
            Side("recipe_llamero", OWN, "llamero"), Side("recipe_datajuicer", PEERS, "Data-Juicer"),
            Side("recipe_datatrove", PEERS, "datatrove"),
        ),
        "alpaca", CURVE, (300,), options={"workers": 1},
        marks=(
            Mark("recipe_over_datajuicer", compare_rates("recipe_llamero", "recipe_datajuicer"), at_least=10),
            Mark("recipe_over_datatrove", compare_rates("recipe_llamero", "recipe_datatrove"), at_least=20),
        ),
    ),
    Part(
        "scale", "The default recipe on shifted copies, two workers",
        (Side("recipe_llamero", OWN, "llamero"),),
        "copies", LARGE, (3_000, 6_000), rounds=1, options={"workers": 2},
        marks=(
            Mark("scale_seconds_a_record_largest_over_smallest", lambda f: f["recipe_llamero"]["growth"], at_most=1.3),
            Mark("memory_mib_a_worker_at_10_million", lambda f: f["recipe_llamero"]["memory_at_10_million"], at_most=1024),
        ),
    ),
    Part(
        "workers", "Two workers over one, one thread each",
        (
            Side("recipe_llamero", OWN, "one worker"), Side("recipe_llamero_two", OWN, "two workers"),
        ),
        "copies", (50_000, 100_000, 200_000), (3_000,), rounds=1,
        marks=(
            Mark("two_workers_over_one", compare_wall_rates("recipe_llamero_two", "recipe_llamero"), at_least=1.6),
        ),
    ),
    Part(
        "rouge", "The best ROUGE-L F of a new instruction in a pool",
        (Side("rouge_llamero", OWN, "llamero"), Side("rouge_scorer", PEERS, "rouge_score")),
        "alpaca", (1_200, 2_200, 4_200, 8_200), (230,), rounds=3, unit="instructions",
        options={"asked": 200, "most_asked": 5, "limit": 0.7}, quick_options={"asked": 30, "most_asked": 5, "limit": 0.7},
        marks=(
            Mark("rouge_over_rouge_score", compare_rates("rouge_llamero", "rouge_scorer"), at_least=50),
        ),
    ),
    Part(
        "kcenter", "Greedy k-center, 256 dimensions, 5%",
        (Side("kcenter_llamero", OWN, "llamero"), Side("kcenter_plain", OWN, "plain greedy")),
        "", CURVE, (2_000,), options={"dimensions": 256, "fraction": 0.05},
        marks=(
            Mark("kcenter_seconds", read_seconds("kcenter_llamero"), at_most=5),
        ),
    ),
    Part(
        "stats", "llamero data stats",
        (Side("stats_llamero", OWN, "llamero"),),
        "alpaca", CURVE, (300,),
        marks=(Mark("stats_seconds", read_seconds("stats_llamero"), at_most=3),),
    ),
)  # fmt: skip
