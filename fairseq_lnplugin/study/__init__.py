"""Scores, averages and reports of trained runs: what the recipes call, and what reads their run folders."""
