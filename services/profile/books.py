"""What several reports say together, kept while a batch is applied: orders by key, consents by address."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from shared.facts.consent import fold_consent
from shared.facts.model import Consent
from shared.facts.orders import Folded, fold_order
from shared.facts.rows import ConsentRow, OrderReport, RefundRow


class OrderBook:
    """Reports and refunds by order key."""

    def __init__(self, reports: Iterable[OrderReport] = (), refunds: Iterable[RefundRow] = ()) -> None:
        self.reports: dict[str, list[OrderReport]] = {}
        self.refunds: dict[str, list[RefundRow]] = {}
        self._folded: dict[str, Folded] = {}
        for report in reports:
            self.reports.setdefault(report.order_key, []).append(report)
        for refund in refunds:
            self.refunds.setdefault(refund.order_key, []).append(refund)

    def copy(self) -> OrderBook:
        """A book with the same entries, to be written in apart from this one."""
        return OrderBook(
            (report for reports in self.reports.values() for report in reports),
            (refund for refunds in self.refunds.values() for refund in refunds),
        )

    def add(self, entry: OrderReport | RefundRow) -> None:
        kind: dict[str, list] = self.reports if isinstance(entry, OrderReport) else self.refunds
        kind.setdefault(entry.order_key, []).append(entry)
        self._folded.pop(entry.order_key, None)

    def folded(self, key: str) -> Folded:
        """What is known of this order."""
        if (there := self._folded.get(key)) is None:
            there = self._folded[key] = fold_order(self.reports.get(key, []), self.refunds.get(key, []))
        return there


class ConsentBook:
    """The ledger of the addresses that a batch speaks of."""

    def __init__(self, rows: Iterable[ConsentRow] = ()) -> None:
        self._rows: dict[UUID, list[ConsentRow]] = {}
        self.add(rows)

    def add(self, rows: Iterable[ConsentRow]) -> None:
        for row in rows:
            self._rows.setdefault(row.node, []).append(row)

    def folded(self, node: UUID, address: str) -> list[Consent]:
        """The consents of one address."""
        return fold_consent(self._rows.get(node, []), {node: address})
