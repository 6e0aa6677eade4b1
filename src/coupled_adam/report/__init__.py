"""``coupled-adam compare``: does it pay for this text? A plan, an experiment, a recommendation."""

from coupled_adam.extras import needs

with needs("cli"):
    from coupled_adam.report.advice import RULES, Advice, Facts, Finding, Versus, advise
    from coupled_adam.report.experiment import Experiment, Result
    from coupled_adam.report.page import write_report
    from coupled_adam.report.plan import Plan, make_plan
    from coupled_adam.report.tables import write_tables

__all__ = [
    "RULES",
    "Advice",
    "Experiment",
    "Facts",
    "Finding",
    "Plan",
    "Result",
    "Versus",
    "advise",
    "make_plan",
    "write_report",
    "write_tables",
]
