"""The two ways in which an agent's work does not get on: what another time may mend, and what no trying mends."""


class Trouble(Exception):
    """Something is away or not ready: it is tried again. The message is a sentence."""


class Refusal(Exception):
    """An adapter (or base) that can't be served as it is, for good. The message is a sentence that says why and what to do."""
