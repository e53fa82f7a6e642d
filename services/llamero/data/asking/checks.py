"""Whether a manifest's language models can be asked at all: looked at before a record is read, rather than hours later."""

from llamero.data.asking.addresses import check_url, read_key
from llamero.data.asking.ledger import check_prices
from llamero.data.errors import DataError
from llamero.spec.asked import list_language_models, show_path
from llamero.spec.job import DataSpec


def check_models(data: DataSpec) -> None:
    """Each model has an address that may be asked, its key, and prices where it has a maxCost. Sends nothing. Raises DataError."""
    for path, model in list_language_models(data):
        try:
            check_url(model.url, data.allow_http)
            check_prices(model, show_path(path))
            read_key(model)
        except DataError as error:
            raise DataError(str(error) if show_path(path) in str(error) else f"{show_path(path)}: {error}") from None
