"""llamero: from raw data to a measured, served chat model."""

__version__ = "0.1.0"
