"""GPU time and cost of attempts that have ended."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from llamero.spec.status import AttemptStatus, UsageStatus


def add_usage(usage: UsageStatus, work: AttemptStatus, prices: Mapping[str, float], now: datetime) -> UsageStatus:
    """The usage with this attempt's share: from when its pod was seen running until now, when its end was seen."""
    if not work.gpus or work.running_since is None:
        return usage
    seconds = max(int((now - work.running_since).total_seconds()), 0) * work.gpus
    price = prices.get(work.gpu_class or "")
    cost = usage.cost
    if price is not None:
        spent = Decimal(usage.cost or "0") + Decimal(str(price)) * seconds / 3600
        cost = str(spent.quantize(Decimal("0.0001")))[:32]
    return UsageStatus(gpu_seconds=usage.gpu_seconds + seconds, cost=cost)
