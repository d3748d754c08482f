"""The whole way on real data: train, record, analyse, replay, predict, report."""

from dynome_analysis.demo.run import run_demo
from dynome_analysis.demo.table import closing_table

__all__ = ["closing_table", "run_demo"]
