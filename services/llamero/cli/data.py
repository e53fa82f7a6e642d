"""`llamero data`: the data phase by itself, on any file or manifest. Each command stands in a module of its own."""

import click

from llamero.cli.data_diff import diff
from llamero.cli.data_explain import explain
from llamero.cli.data_prepare import prepare
from llamero.cli.data_stats import stats


@click.group()
def data() -> None:
    """Prepare data, count it, compare two versions of it, and ask what became of a record."""


for _command in (prepare, stats, explain, diff):
    data.add_command(_command)
