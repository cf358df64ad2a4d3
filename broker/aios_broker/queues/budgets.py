"""How agents and their tenants stand by their budgets of a day or a month."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from aios_broker.contract.money import shown
from aios_broker.contract.names import Module, Owner
from aios_broker.queues.quota import ANYBODY, BUDGET_WINDOWS, Budget, QuotaRow, Quotas, Subject

_NAMES = {"day": "%Y-%m-%d", "month": "%Y-%m"}


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    """What somebody has spent of a budget."""

    subject: Subject  # an agent, or a tenant
    window: str  # day or month, of UTC
    spent_nano: int
    budget: Budget

    @property
    def share(self) -> float:
        """How much of it is gone; 1 and more: all."""
        return self.spent_nano / self.budget.nano if self.budget.nano else 1.0

    @property
    def words(self) -> str:
        """Return it as people say it."""
        spent = shown(self.spent_nano, self.budget.currency)
        return f"{self.subject.full_words}: {spent} of {self.budget} this {self.window}"


async def tightest_budgets(
    quotas: Quotas, module: Module, owners: Collection[Owner], now: datetime
) -> dict[Owner, BudgetStanding]:
    """Return of each agent the budget, its own or its tenant's, that is used up most.

    Agents without a budget are not in it. Two reads of Redis, however many agents there are.
    """
    rows = {str(row.subject): row for row in await quotas.rows(module)}
    asked = {
        owner: [
            (subject, window, budget)
            for subject in (
                Subject.of_agent(owner.agent, owner.tenant),
                Subject.of_tenant(owner.tenant),
            )
            for window, budget in _budgets(rows, subject)
        ]
        for owner in owners
    }
    fields = {
        f"{window} {budget.currency} {subject}"
        for each in asked.values()
        for subject, window, budget in each
    }
    spent = await quotas.spent(module, sorted(fields))
    names = {window: f"{now.astimezone(UTC):{form}}" for window, form in _NAMES.items()}
    found = {}
    for owner, each in asked.items():
        standings = [
            BudgetStanding(
                subject,
                window,
                _of_now(spent.get(f"{window} {budget.currency} {subject}", ""), names[window]),
                budget,
            )
            for subject, window, budget in each
        ]
        if standings:
            found[owner] = max(standings, key=lambda standing: standing.share)
    return found


def _budgets(rows: dict[str, QuotaRow], subject: Subject) -> list[tuple[str, Budget]]:
    own, everybody = rows.get(str(subject)), rows.get(f"{subject.scope}:{ANYBODY}")
    found = []
    for limit, window in BUDGET_WINDOWS.items():
        budgets = [getattr(row, limit) for row in (own, everybody) if row is not None]
        budget = next((one for one in budgets if one is not None), None)
        if budget is not None:
            found.append((window, budget))
    return found


def _of_now(kept: str, name: str) -> int:
    """Return what is kept of a window; nothing of one that is over."""
    of, _, nano = kept.partition(" ")
    return int(nano) if of == name else 0
