"""What a run leaves behind: claims, records, stamp, figures, runner. Knows neither theory nor lab."""

from companion.ledger import figures
from companion.ledger.records import begin, close, record

__all__ = ["begin", "close", "figures", "record"]
