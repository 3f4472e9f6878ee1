"""A sitting whose every case is answered once for all ports."""

from dataclasses import dataclass, field, fields

from parity.cases import Case
from parity.cases_file import digest
from parity.reference.asked import Question, Sitting
from parity.reference.program import Reference


@dataclass(frozen=True)
class Remembering(Sitting):
    """Keeps what its first reference has answered; what is answered with a mistake in it serves one port alone."""

    first: Reference | None = None
    known: dict[str, Question | None] = field(default_factory=dict)

    @staticmethod
    def beside(sitting: Sitting) -> "Remembering":
        """A sitting that is prepared, with a memory."""
        return Remembering(
            **{each.name: getattr(sitting, each.name) for each in fields(sitting)}, first=sitting.reference
        )

    def ask(self, case: Case) -> Question | None:
        if self.reference is not self.first:
            return super().ask(case)
        key = digest(case)
        if key not in self.known:
            self.known[key] = super().ask(case)
        return self.known[key]
